// What the teacher has locked, and word of changes. Gradio gives this script element, props, watch and trigger.
const {setText, address} = window.lab;
const note = element.querySelector('.note');
let asked = 0;

if (new URL(location).searchParams.get('view') === 'projector') document.body.classList.add('projected-view');

document.addEventListener('class', function hear({detail}) {
  if (!element.isConnected) return document.removeEventListener('class', hear);
  const known = props.value;
  if (!known || detail.since === known.since && detail.locks.join() === known.locks.join()) return;
  if (Date.now() - asked < 2500) return;  // the answer is on its way
  asked = Date.now();
  trigger('changed');
});

function show() {
  if (!props.value) return;
  address({teacher: ''});  // of a wrong key an empty one was left, for the server to see
  setText(note, props.value.said ?? '');
  note.hidden = !note.textContent;
}
watch('value', show);
show();
