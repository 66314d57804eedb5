// Question by question: both answers and their scores. Gradio gives it element, props and watch.
const {el, markChanges, scoreBar, number} = window.lab;
const $ = selector => element.querySelector(selector);
const PAGE = 10;
let shown = PAGE, picked = null;

function side(name, runs, score) {
  const box = el('div', 'answer ' + name), text = el('p', 'text'), mark = el('div', 'mark');
  box.append(el('span', 'who', name === 'base' ? 'base' : props.value.other), text, mark);
  markChanges(text, runs);
  mark.append(scoreBar(score, props.value.low, props.value.high, props.value.name));
  return box;
}

function show() {
  const value = props.value;
  $('.pairs').hidden = !value;
  if (!value) return;
  const words = $('input').value.trim().toLowerCase(), order = $('select').value;
  const contains = row => (row.prompt + ' ' + row.base + ' ' + row.ppo).toLowerCase().includes(words);
  const rows = value.rows.filter(row => !words || contains(row));
  const gain = row => row.ppo_score - row.base_score;
  rows.sort(order === 'prompt' ? (a, b) => a.prompt.localeCompare(b.prompt)
    : (a, b) => order === 'gain' ? gain(b) - gain(a) : gain(a) - gain(b));
  // A question whose point was clicked in a figure stands first.
  rows.sort((a, b) => (b.index === picked) - (a.index === picked));
  $('.count').textContent = words ? rows.length + ' of ' + value.rows.length + ' questions contain it' :
    value.rows.length + ' questions';
  $('.rows').replaceChildren(...rows.slice(0, shown).map(row => {
    const card = el('article', row.index === picked ? 'turn picked' : 'turn');
    const head = el('h4', '', row.prompt), pair = el('div', 'pair');
    const by = gain(row);
    head.append(el('span', by < 0 ? 'gain down' : 'gain', (by < 0 ? '' : '+') + number(by)));
    pair.append(side('base', [[row.base, false]], row.base_score), side('ppo', row.changes, row.ppo_score));
    card.append(head, pair);
    return card;
  }));
  $('.more').hidden = rows.length <= shown;
}
$('input').addEventListener('input', () => { shown = PAGE; show(); });
$('select').addEventListener('change', () => { shown = PAGE; show(); });
$('.more').addEventListener('click', () => { shown += 2 * PAGE; show(); });
watch('value', () => { shown = PAGE; picked = null; show(); });
document.addEventListener('pick', function pick(event) {
  if (!element.isConnected) return document.removeEventListener('pick', pick);
  picked = event.detail; shown = PAGE; $('input').value = '';
  show();
  $('.turn')?.scrollIntoView({behavior: 'smooth', block: 'center'});
});
show();
