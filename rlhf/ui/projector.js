// What a projector shows. Gradio gives this script element, props and server.
const {el, setText, plot, showTiles} = window.lab;
const $ = selector => element.querySelector(selector);
let drawn = '', busy = false;

async function look() {
  if (busy || !props.value || !document.body.classList.contains('projected-view')) return;
  busy = true;
  const news = await server.project({run: props.value, drawn}).catch(() => ({error: ''}));
  busy = false;
  if (news.error !== undefined) return;  // the next look comes soon
  setText($('.verdict'), news.verdict);
  setText($('header span'), news.run);
  showTiles($('.tiles'), news.tiles);
  drawn = news.drawn;
  news.figures?.forEach((figure, i) => {
    const node = element.querySelectorAll('.plot')[i];
    node.previousElementSibling.replaceChildren(el('b', '', news.captions[i][0]), el('span', '', news.captions[i][1]));
    plot(node, figure);
  });
}
document.addEventListener('class', function hear() {
  if (!element.isConnected) return document.removeEventListener('class', hear);
  look();
});
watch('value', look);
look();
