// Of every page: light or dark, and a note beside the pointer.
const figure = document.querySelector('.circuit'), tip = document.getElementById('tip');
const all = selector => [...figure.querySelectorAll(selector)];
const notes = new Map(all('title').map(title => [title.parentNode, title.textContent]));
all('title').forEach(title => title.remove());

const add = (tag, text) => { tip.appendChild(document.createElement(tag)).textContent = text; };
const quiet = () => tip.classList.remove('on');
function note(...lines) {
  tip.replaceChildren();
  lines.forEach(([tag, text]) => add(tag, text));
  tip.classList.add('on');
}
function move(event) {
  const box = tip.getBoundingClientRect(), x = event.clientX + 16, y = event.clientY + 14;
  tip.style.left = Math.max(4, x + box.width > innerWidth ? event.clientX - box.width - 12 : x) + 'px';
  tip.style.top = Math.max(4, Math.min(y, innerHeight - box.height - 8)) + 'px';
}

const button = document.getElementById('theme'), night = matchMedia('(prefers-color-scheme: dark)');
const dark = () => (document.documentElement.dataset.theme || (night.matches ? 'dark' : 'light')) === 'dark';
const name = () => { button.textContent = dark() ? 'Light' : 'Dark'; };
button.addEventListener('click', () => {
  const theme = dark() ? 'light' : 'dark';
  document.documentElement.dataset.theme = figure.dataset.theme = theme;
  name();
});
night.addEventListener('change', name);
name();

all('.mark').forEach(mark => {
  mark.addEventListener('mouseenter', event => {
    note(...notes.get(mark).split('\n').map((line, place) => [place ? 'div' : 'b', line]));
    move(event);
  });
  mark.addEventListener('mousemove', move);
  mark.addEventListener('mouseleave', quiet);
});
