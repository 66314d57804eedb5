// Question by question: all answers of both models and their scores. Gradio gives it element, props and watch.
const {el, markChanges, scoreBar, number} = window.lab;
const $ = selector => element.querySelector(selector);
const PAGE = 10;
let shown = PAGE, picked = null;  // picked: [question, answer, model] of the point that was clicked in a figure

// How much more the reward model likes an answer than the rubric does: its place between the lowest and the highest
// score, minus its rubric, which lies between 0 and 1.
const fooled = answer => (answer.score - props.value.low) / (props.value.high - props.value.low || 1) - answer.gold;
const worst = row => row.ppo.reduce((most, answer, i) => fooled(answer) > fooled(row.ppo[most]) ? i : most, 0);

const ORDERS = {
  gain: (a, b) => b.gain - a.gain,
  loss: (a, b) => a.gain - b.gain,
  fooled: (a, b) => fooled(b.ppo[worst(b)]) - fooled(a.ppo[worst(a)]),
  prompt: (a, b) => a.prompt.localeCompare(b.prompt),
};

function side(name, answer, isPicked) {
  const {other, low, high, rubric} = props.value;
  const box = el('div', 'answer ' + name + (isPicked ? ' picked' : '')), text = el('p', 'text'), mark = el('div', 'mark');
  box.append(el('span', 'who', name === 'base' ? 'base' : other), text, mark);
  text.dir = 'auto';
  markChanges(text, answer.text);
  mark.append(scoreBar(answer.score, low, high));
  if (rubric) mark.append(scoreBar(answer.gold, 0, 1, 'rubric'));
  return box;
}

function card(row, first) {
  const node = el('article', 'turn'), head = el('h4'), question = el('span', '', row.prompt), pair = el('div', 'pair');
  const by = el('span', row.gain < 0 ? 'gain down' : 'gain', (row.gain < 0 ? '' : '+') + number(row.gain));
  const count = Math.max(row.base.length, row.ppo.length);
  question.dir = 'auto';
  head.append(question, by);
  node.append(head, pair);
  const open = at => pair.replaceChildren(...['base', 'ppo'].map(name => {
    const nth = Math.min(at, row[name].length - 1);
    const isPicked = picked?.[0] === row.index && nth === picked[1] && (name === 'base') === (picked[2] === 'base');
    return side(name, row[name][nth], isPicked);
  }));
  open(first);
  if (count > 1) node.append(pager(count, first, open));
  return node;
}

// The way from one answer to the next.
function pager(count, at, open) {
  const bar = el('div', 'pager'), where = el('span');
  const step = (by, sign, name) => {
    const button = el('button', '', sign);
    button.type = 'button';
    button.ariaLabel = name;
    button.addEventListener('click', () => { at = (at + by + count) % count; open(at); tell(); });
    return button;
  };
  const tell = () => { where.textContent = 'Answer ' + (at + 1) + ' of ' + count; };
  tell();
  where.setAttribute('role', 'status');
  bar.append(step(-1, '\u2039', 'Previous answer'), where, step(1, '\u203a', 'Next answer'));
  return bar;
}

function show() {
  const value = props.value;
  $('.pairs').hidden = !value;
  if (!value) return;
  const byRubric = $('[value=fooled]');
  byRubric.hidden = byRubric.disabled = !value.rubric;
  if (byRubric.disabled && byRubric.selected) $('select').value = 'gain';
  const words = $('input').value.trim().toLowerCase(), order = $('select').value;
  const said = row => [...row.base, ...row.ppo].map(answer => answer.text.map(([run]) => run).join(''));
  const contains = row => [row.prompt, ...said(row)].join('\n').toLowerCase().includes(words);
  const rows = value.rows.filter(row => !words || contains(row)).sort(ORDERS[order]);
  // A question whose point was clicked in a figure stands first.
  rows.sort((a, b) => (b.index === picked?.[0]) - (a.index === picked?.[0]));
  const count = Math.max(...value.rows.map(row => row.ppo.length));
  $('.count').textContent = (words ? rows.length + ' of ' + value.rows.length + ' questions contain it.'
    : value.rows.length + ' questions.') + (order === 'fooled'
    ? ' First the answers that the reward model likes far more than the rubric does: where it is fooled.'
    : ' The number beside a question: the ' + value.measure + ' of ' + value.other + ' minus that of the base model'
      + (count > 1 ? ', averages of ' + count + ' answers each.' : '.'));
  $('.rows').replaceChildren(...rows.slice(0, shown).map(row => {
    const isPicked = row.index === picked?.[0];
    const node = card(row, isPicked ? picked[1] ?? 0 : order === 'fooled' ? worst(row) : 0);
    node.classList.toggle('picked', isPicked);
    return node;
  }));
  $('.more').hidden = rows.length <= shown;
}
$('input').addEventListener('input', () => { shown = PAGE; show(); });
$('select').addEventListener('change', () => { shown = PAGE; picked = null; show(); });
$('.more').addEventListener('click', () => {
  const before = shown;
  shown += 2 * PAGE;
  show();
  element.querySelectorAll('.turn')[before].querySelector('button')?.focus({preventScroll: true});
});
watch('value', () => { shown = PAGE; picked = null; show(); });
document.addEventListener('pick', function pick(event) {
  if (!element.isConnected) return document.removeEventListener('pick', pick);
  picked = event.detail; shown = PAGE; $('input').value = '';
  show();
  $('.turn')?.scrollIntoView({behavior: 'smooth', block: 'center'});
});
show();
