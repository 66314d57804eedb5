// A figure of the Scores tab. Gradio gives it element, props and watch.
const node = element.querySelector('.plot');
const pick = event => {
  const {data, customdata} = event.points[0];
  if (data.meta?.pick) document.dispatchEvent(new CustomEvent('pick', {detail: customdata}));
};
async function show() {
  if (!props.value) return;
  await window.lab.plot(node, props.value);
  node.removeAllListeners('plotly_click');
  node.on('plotly_click', pick);
}
watch('value', show);
show();
