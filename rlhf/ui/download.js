// A button that downloads a file of the shown run. Gradio gives it element, props and server.
const button = element.querySelector('button'), said = element.querySelector('.said');
button.addEventListener('click', async () => {
  button.disabled = true;
  window.lab.setText(said, '');
  try {
    const file = await server.download({run: props.value});
    if (file.error) window.lab.setText(said, file.error); else window.lab.download(file);
  } catch {
    window.lab.setText(said, 'The file could not be made; is the disk full?');
  } finally { button.disabled = false; }
});
