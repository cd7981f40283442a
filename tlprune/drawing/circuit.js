// Of the page of a circuit: what is joined to what, what lies up and down the stream, and which edges are shown.
const most = 12, edges = all('.edge'), nodes = all('.node'), ties = all('[data-tie]');
const byName = new Map(nodes.map(node => [node.dataset.node, node]));
const count = document.getElementById('count'), slider = document.getElementById('threshold');
const shown = edge => !edge.classList.contains('off') && !edge.classList.contains('low');
const grouped = (items, key) => {
  const groups = new Map(nodes.map(node => [node.dataset.node, []]));
  items.forEach(item => groups.get(key(item))?.push(item));
  return groups;
};
const outOf = grouped(edges, edge => edge.dataset.from), into = grouped(edges, edge => edge.dataset.to);
const tiesFrom = grouped(ties, tie => tie.dataset.tie), tiesTo = grouped(ties, tie => tie.dataset.head);
let pinned = null;

// A query stays where it is: only keys and values are moved by a tie.
const moves = edge => edge.dataset.part !== 'q';

function walked(start, next) {
  const reached = {edges: new Set(), ties: new Set(), nodes: new Set()}, open = [[start, true]], met = new Set();
  while (open.length) {
    const [node, tied] = open.pop(), key = node + tied;
    if (met.has(key)) continue;
    met.add(key);
    next(node, tied, reached, (name, onward) => { reached.nodes.add(name); open.push([name, onward]); });
  }
  reached.nodes.delete(start);
  return reached;
}
const downstream = start => walked(start, (node, tied, reached, go) => {
  outOf.get(node).filter(shown).forEach(edge => { reached.edges.add(edge); go(edge.dataset.to, moves(edge)); });
  if (tied) tiesFrom.get(node).forEach(tie => { reached.ties.add(tie); go(tie.dataset.head, false); });
});
const upstream = start => walked(start, (node, whole, reached, go) => {
  into.get(node).filter(shown).filter(edge => whole || moves(edge))
    .forEach(edge => { reached.edges.add(edge); go(edge.dataset.from, true); });
  if (whole) tiesTo.get(node).filter(tie => alive(tie.dataset.tie))
    .forEach(tie => { reached.ties.add(tie); go(tie.dataset.tie, false); });
});
const alive = name => into.get(name).some(edge => shown(edge) && moves(edge));

const number = value => value.toLocaleString('en');
const counted = (value, name) => number(value) + ' ' + name + (value === 1 ? '' : 's');
function list(heading, found) {
  if (!found.length) return [];
  const rest = found.length > most ? [['div', '\u2026 and ' + (found.length - most) + ' more']] : [];
  return [['i', heading + ' (' + found.length + ')'], ...found.slice(0, most).map(edge => ['div', notes.get(edge)]), ...rest];
}
function light(...items) {
  figure.classList.add('focus');
  all('.hot').forEach(item => item.classList.remove('hot'));
  items.forEach(item => item?.classList.add('hot'));
}
function ends(items) {
  return items.flatMap(({dataset: {from, to, tie, head}}) => [from, to, tie, head].map(name => byName.get(name)));
}
function near(node) {
  const {node: name, keyvalue: shared} = node.dataset;
  return {
    reads: [...into.get(name), ...(shared ? into.get(shared) : [])].filter(shown),
    written: outOf.get(name).filter(shown), ties: [...tiesFrom.get(name), ...tiesTo.get(name)],
  };
}
function told(node) {
  const {reads, written} = near(node);
  const lines = [...list('reads', reads), ...list('read by', written)];
  return [['b', node.dataset.node], ...(lines.length ? lines : [['i', 'no edge here']])];
}
function show(item) {
  tip.classList.remove('docked');
  if (!item.dataset.node) {
    light(item, ...ends([item]));
    return note(['b', notes.get(item)]);
  }
  if (item === pinned) return trace(item);
  const {reads, written, ties: tied} = near(item), joined = [...reads, ...written, ...tied];
  light(item, ...joined, ...ends(joined));
  note(...told(item));
}
function trace(node) {
  const up = upstream(node.dataset.node), down = downstream(node.dataset.node);
  const items = [up, down].flatMap(way => [...way.edges, ...way.ties, ...[...way.nodes].map(name => byName.get(name))]);
  light(node, ...items);
  const words = way => counted(way.nodes.size, 'node') + ', ' + counted(total([...way.edges]), 'edge');
  note(...told(node), ['i', 'upstream: ' + words(up)], ['i', 'downstream: ' + words(down)]);
  tip.classList.add('docked');
}
function hide() {
  if (pinned) return show(pinned);
  figure.classList.remove('focus');
  quiet();
}
function pin(item) {
  pinned?.classList.remove('pinned');
  pinned?.setAttribute('aria-pressed', 'false');
  pinned = pinned === item ? null : item;
  pinned?.classList.add('pinned');
  pinned?.setAttribute('aria-pressed', 'true');
  hide();
}
function listen(target, item) {
  target.addEventListener('mouseenter', event => { show(item); move(event); });
  target.addEventListener('mousemove', event => { if (!pinned || pinned === item) move(event); });
  target.addEventListener('mouseleave', hide);
  target.addEventListener('click', event => { event.stopPropagation(); pin(item); });
}

// Edges that are easy to hit: each has a wide copy that is not seen.
const reaches = new Map();
if (edges.length <= 2000) edges.forEach(edge => {
  const reach = edge.cloneNode(false);
  reach.setAttribute('class', 'reach');
  reach.removeAttribute('stroke-width');
  delete reach.dataset.edge;
  edge.before(reach);
  reaches.set(edge, reach);
  listen(reach, edge);
  listen(edge, edge);
});
function turn(edge, mark, on) {
  edge.classList.toggle(mark, on);
  reaches.get(edge)?.classList.toggle(mark, on);
}

// The keyboard: one stop for the tabulator, and arrows from box to box.
const box = node => { const {x, y, width, height} = node.getBBox(); return {x: x + width / 2, y: y + height / 2}; };
function beside(node, key) {
  const here = box(node), across = key === 'ArrowLeft' || key === 'ArrowRight', sign = /Left|Up/.test(key) ? -1 : 1;
  const away = other => { const there = box(other), dx = there.x - here.x, dy = there.y - here.y;
    const ahead = sign * (across ? dx : dy), aside = Math.abs(across ? dy : dx);
    return ahead < 3 || (across && aside > 20) ? Infinity : ahead * (across ? 1 : 40) + aside; };
  return nodes.reduce((best, other) => (away(other) < away(best) ? other : best), node);
}
figure.setAttribute('role', 'group');
nodes.forEach((node, place) => {
  node.setAttribute('role', 'button');
  node.setAttribute('aria-pressed', 'false');
  node.setAttribute('tabindex', place ? '-1' : '0');
  listen(node, node);
  node.addEventListener('focus', () => {
    nodes.forEach(other => other.setAttribute('tabindex', other === node ? '0' : '-1'));
    if (!node.matches(':focus-visible')) return;
    const place = node.getBoundingClientRect();
    show(node);
    move({clientX: place.right, clientY: place.top});
  });
  node.addEventListener('blur', hide);
  node.addEventListener('keydown', event => {
    if (event.key === 'Enter' || event.key === ' ') pin(node);
    else if (/^Arrow/.test(event.key)) beside(node, event.key).focus();
    else return;
    event.preventDefault();
  });
});
document.addEventListener('click', event => { if (pinned && !event.target.closest('.bar')) pin(pinned); });
document.addEventListener('keydown', event => { if (event.key === 'Escape' && pinned) pin(pinned); });

// Filters: colours by the legend, small weights by the slider.
const total = some => some.reduce((sum, edge) => sum + Number(edge.dataset.count || 1), 0);
const weights = edges.map(edge => Math.abs(Number(edge.dataset.weight || 0))), sizes = [...weights].sort((a, b) => a - b);
const limit = () => (slider ? sizes[slider.value] : 0);
function update() {
  if (slider) edges.forEach((edge, place) => turn(edge, 'low', weights[place] < limit()));
  const least = slider && slider.value > 0 ? ', |weight| \u2265 ' + Number(limit().toPrecision(3)) : '';
  const text = number(total(edges.filter(shown))) + ' of ' + counted(total(edges), 'edge') + least;
  count.textContent = text;
  slider?.setAttribute('aria-valuetext', text);
  nodes.forEach(node => {
    const {reads, written} = near(node);
    node.classList.toggle('bare', edges.length > 0 && !reads.length && !written.length);
    node.setAttribute('aria-label', node.dataset.node + ', reads ' + reads.length + ', is read by ' + written.length);
  });
  if (pinned) show(pinned);
}
if (slider) {
  slider.max = Math.max(0, edges.length - 1);
  slider.value = 0;
  slider.addEventListener('input', update);
}
function toggle(legend) {
  const off = legend.classList.toggle('off'), look = legend.dataset.toggle;
  legend.setAttribute('aria-pressed', String(!off));
  edges.filter(edge => edge.parentNode.dataset.look === look).forEach(edge => turn(edge, 'off', off));
  update();
}
all('.legend').forEach(legend => {
  legend.setAttribute('role', 'button');
  legend.setAttribute('tabindex', '0');
  legend.setAttribute('aria-pressed', 'true');
  legend.setAttribute('aria-label', 'show ' + legend.textContent);
  legend.addEventListener('click', event => { event.stopPropagation(); toggle(legend); });
  legend.addEventListener('keydown', event => {
    if (event.key !== 'Enter' && event.key !== ' ') return;
    event.preventDefault();
    toggle(legend);
  });
});
update();
