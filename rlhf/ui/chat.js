// The conversation: one question and both answers per turn. Gradio gives it element, props and watch.
const {el, setText, scoreBar, number} = window.lab;
const $ = selector => element.querySelector(selector);

function turnNode(trained) {
  const turn = el('article', 'turn'), pair = el('div', 'pair');
  for (const name of ['base', 'ppo']) {
    const box = el('div', 'answer ' + name);
    box.append(el('span', 'who', name === 'base' ? 'base' : trained), el('p', 'text'), el('div', 'mark'));
    box.querySelector('.text').dir = 'auto';
    pair.append(box);
  }
  turn.append(el('h3'), pair);
  turn.firstChild.dir = 'auto';
  return turn;
}

function show() {
  const value = props.value;
  if (!value) return;
  setText($('.verdict'), value.sentence);
  for (const name of ['base', 'ppo']) setText($('.voice.' + name + ' span'), value.voices[name]);
  setText($('.voice.ppo b'), value.trained);
  const turns = $('.turns');
  while (turns.childElementCount > value.turns.length) turns.lastChild.remove();
  turns.classList.toggle('empty', !value.turns.length);
  value.turns.forEach((turn, i) => {
    const node = turns.children[i] || turns.appendChild(turnNode(value.trained));
    setText(node.querySelector('h3'), turn.question);
    for (const name of ['base', 'ppo']) {
      const answer = turn[name], box = node.querySelector('.' + name);
      box.classList.toggle('writing', !answer.done);
      setText(box.querySelector('.text'), answer.text);
      if (answer.done !== box.done || answer.score !== box.score) {
        box.done = answer.done; box.score = answer.score;
        const parts = (answer.parts || []).map(([name, weight, given]) => name + ' '
          + (given === null ? 'none' : number(given))
          + (weight === 1 ? '' : ' \u00d7 ' + String(weight).replace('-', '\u2212')));
        box.querySelector('.mark').replaceChildren(scoreBar(answer.score, value.scale[0], value.scale[1]),
          ...(parts.length ? [el('p', 'gloss parts', parts.join(' \u00b7 '))] : []));
      }
    }
  });
  turns.scrollTop = turns.scrollHeight;
}
// A question that is too long says so while it is written.
document.addEventListener('input', function count(event) {
  if (!element.isConnected) return document.removeEventListener('input', count);
  const hint = document.querySelector('#room p'), limit = props.value?.longest;
  if (!event.target.matches('#question textarea') || !hint || !limit) return;
  const length = event.target.value.trim().length, most = limit.toLocaleString('en');
  hint.classList.toggle('over', length > limit);
  hint.textContent = length > 0.8 * limit ? length.toLocaleString('en') + ' of about ' + most + ' characters'
    + (length > limit ? ': probably too long' : '') : 'A question may have up to about ' + most + ' characters.';
});
watch('value', show);
show();
