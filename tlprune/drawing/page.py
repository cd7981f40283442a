"""The page around a figure: hover, pin and filter, in one file that asks for nothing from outside."""

from __future__ import annotations

from html import escape

from tlprune.drawing.figure import clean

# Links fade by stroke-opacity: opacity would give each one a layer of its own, which is slow for hundreds.
STYLE = """
:root{color-scheme:light dark}
body{margin:0;background:#fff;font:13px/1.45 Inter,'Helvetica Neue',Helvetica,Arial,'DejaVu Sans',sans-serif}
main{overflow-x:auto}
.circuit{display:block;margin:0 auto;height:auto;max-width:max(100%,900px)}
.node,.legend,.reach{cursor:pointer}
.node:focus{outline:none}
.node:focus-visible rect,.node.pinned rect{stroke-width:2.5}
.legend.off{opacity:.35}
.edge.off{display:none}
.focus .edge{stroke-opacity:.06}
.bundled.focus .edge{stroke-opacity:.015}
.focus .tie{stroke-opacity:.15}
.focus .node{opacity:.3}
.circuit.focus .edge.hot,.focus .tie.hot{stroke-opacity:1}
.focus .node.hot{opacity:1}
.reach{fill:none;stroke:transparent;stroke-width:9;pointer-events:stroke}
#tip{position:fixed;pointer-events:none;max-width:340px;padding:8px 11px;border-radius:7px;background:#1c2530;
color:#f2f5f8;box-shadow:0 3px 14px #0004;font-size:12px;opacity:0;transition:opacity .1s}
#tip.on{opacity:1}
#tip b{display:block;font-size:13px}
#tip i{display:block;margin-top:5px;font-style:normal;color:#a9b5c3}
@media screen and (prefers-color-scheme:dark){
body{background:#14171c}
#tip{background:#e6eaf0;color:#1c2530}
#tip i{color:#5b6775}
}
@media print{#tip{display:none}}
"""

SCRIPT = """
(() => {
const figure = document.querySelector('.circuit'), tip = document.getElementById('tip'), most = 12;
const all = selector => [...figure.querySelectorAll(selector)];
const edges = all('.edge'), nodes = all('.node'), ties = all('[data-tie]');
const byName = new Map(nodes.map(node => [node.dataset.node, node]));
const notes = new Map(edges.map(edge => [edge, edge.querySelector('title').textContent]));
all('title').forEach(title => title.remove());
const joined = edge => byName.get(edge.dataset.from) && !edge.classList.contains('off');
let pinned = null;

const add = (tag, text) => tip.appendChild(document.createElement(tag)).textContent = text;
function list(heading, found, name) {
  if (!found.length) return;
  add('i', heading + ' (' + found.length + ')');
  found.slice(0, most).forEach(edge => add('div', name(edge)));
  if (found.length > most) add('div', '\\u2026 and ' + (found.length - most) + ' more');
}
function around(node) {
  const name = node.dataset.node, shared = node.dataset.keyvalue;
  const into = edges.filter(e => joined(e) && (e.dataset.to === name || e.dataset.to === shared));
  return {into, out: edges.filter(e => joined(e) && e.dataset.from === name),
    ties: ties.filter(t => t.dataset.tie === name || t.dataset.head === name)};
}
function show(item) {
  figure.classList.add('focus');
  all('.hot').forEach(e => e.classList.remove('hot'));
  tip.replaceChildren();
  const links = item.dataset.node ? around(item) : {into: [item], out: [], ties: []};
  const hot = [...links.into, ...links.out, ...links.ties];
  hot.forEach(e => { e.classList.add('hot');
    [e.dataset.from, e.dataset.to, e.dataset.tie, e.dataset.head].forEach(n => byName.get(n)?.classList.add('hot')); });
  item.classList.add('hot');
  add('b', item.dataset.node || notes.get(item));
  if (item.dataset.node) {
    list('reads', links.into, notes.get.bind(notes));
    list('read by', links.out, notes.get.bind(notes));
    if (!hot.length) add('i', 'no edge in this circuit');
  }
  tip.classList.add('on');
}
function hide() {
  if (pinned) return show(pinned);
  figure.classList.remove('focus');
  tip.classList.remove('on');
}
function move(event) {
  const box = tip.getBoundingClientRect(), x = event.clientX + 16, y = event.clientY + 14;
  tip.style.left = Math.max(4, x + box.width > innerWidth ? event.clientX - box.width - 12 : x) + 'px';
  tip.style.top = Math.max(4, Math.min(y, innerHeight - box.height - 8)) + 'px';
}
function pin(item) {
  pinned?.classList.remove('pinned');
  pinned = pinned === item ? null : item;
  pinned?.classList.add('pinned');
  hide();
}
function listen(target, item) {
  target.addEventListener('mouseenter', event => { show(item); move(event); });
  target.addEventListener('mousemove', event => { if (!pinned || pinned === item) move(event); });
  target.addEventListener('mouseleave', hide);
  target.addEventListener('click', event => { event.stopPropagation(); pin(item); });
}
nodes.forEach(node => {
  listen(node, node);
  node.addEventListener('focus', () => { if (!node.matches(':focus-visible')) return;
    const box = node.getBoundingClientRect(); show(node); move({clientX: box.right, clientY: box.top}); });
  node.addEventListener('blur', hide);
  node.addEventListener('keydown', event => { if (event.key === 'Enter') pin(node); });
});
if (edges.length <= 2000) edges.forEach(edge => {
  const reach = edge.cloneNode(false);
  reach.setAttribute('class', 'reach');
  reach.removeAttribute('stroke-width');
  delete reach.dataset.edge;
  edge.before(reach);
  listen(reach, edge);
  listen(edge, edge);
});
document.addEventListener('click', () => { if (pinned) pin(pinned); });
document.addEventListener('keydown', event => { if (event.key === 'Escape' && pinned) pin(pinned); });
all('.legend').forEach(legend => legend.addEventListener('click', event => {
  event.stopPropagation();
  const off = legend.classList.toggle('off'), part = legend.dataset.toggle;
  edges.filter(e => (e.parentNode.classList.contains('part-idle') ? 'idle' : e.dataset.part) === part)
    .forEach(e => { e.classList.toggle('off', off);
      const reach = e.previousElementSibling;
      if (reach?.classList.contains('reach')) reach.style.display = off ? 'none' : ''; });
}));
})();
"""


def page(svg: str, *, title: str) -> str:
    """A whole page that shows a figure.

    Example:
        >>> page("<svg/>", title="a < b").startswith("<!doctype html>")
        True
    """
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{clean(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{svg}\n</main>\n"
        f'<div id="tip" role="status"></div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n'
    )


def frame(html: str, *, height: float) -> str:
    """The page as a frame in a notebook, where its styles and script cannot meet those of other cells."""
    return (
        f'<iframe srcdoc="{escape(html)}" sandbox="allow-scripts" style="width:100%;height:{height:.0f}px;border:0" '
        f'loading="lazy"></iframe>'
    )
