// The conversation: one question and both answers per turn. Gradio gives it element, props and watch.
const {el, setText, scoreBar} = window.lab;
const $ = selector => element.querySelector(selector);

function turnNode(trained) {
  const turn = el('article', 'turn'), pair = el('div', 'pair');
  for (const name of ['base', 'ppo']) {
    const box = el('div', 'answer ' + name);
    box.append(el('span', 'who', name === 'base' ? 'base' : trained), el('p', 'text'), el('div', 'mark'));
    pair.append(box);
  }
  turn.append(el('h4'), pair);
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
    setText(node.querySelector('h4'), turn.question);
    for (const name of ['base', 'ppo']) {
      const answer = turn[name], box = node.querySelector('.' + name);
      box.classList.toggle('writing', !answer.done);
      setText(box.querySelector('.text'), answer.text);
      if (answer.done !== box.done || answer.score !== box.score) {
        box.done = answer.done; box.score = answer.score;
        box.querySelector('.mark').replaceChildren(scoreBar(answer.score, value.scale[0], value.scale[1]));
      }
    }
  });
  turns.scrollTop = turns.scrollHeight;
}
watch('value', show);
show();
