// Shows the name of the region under the pointer, which is identified by its colour.
(() => {
  const canvases = new WeakMap();

  function pixels(image) {
    if (!canvases.has(image)) {
      const canvas = document.createElement("canvas");
      canvas.width = image.naturalWidth;
      canvas.height = image.naturalHeight;
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      canvases.set(image, context);
    }
    return canvases.get(image);
  }

  function colourAt(image, event) {
    const box = image.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * image.naturalWidth);
    const y = Math.floor(((event.clientY - box.top) / box.height) * image.naturalHeight);
    const [red, green, blue] = pixels(image).getImageData(x, y, 1, 1).data;
    return [red, green, blue].map((value) => value.toString(16).padStart(2, "0")).join("");
  }

  function nameRegion(event) {
    const layers = event.target.closest?.(".regions .layers");
    document.querySelectorAll(".regions .name").forEach((name) => {
      if (name.parentElement !== layers) name.textContent = "";
    });
    const image = layers?.querySelector(".colours");
    if (!image?.naturalWidth) return;
    const label = layers.querySelector(".name");
    label.textContent = JSON.parse(layers.dataset.names)[colourAt(image, event)] ?? "";
    const box = layers.getBoundingClientRect();
    label.style.left = `${event.clientX - box.left}px`;
    label.style.top = `${event.clientY - box.top}px`;
  }

  document.addEventListener("pointermove", nameRegion);
  document.addEventListener("pointerdown", nameRegion); // touch screens have no hover
})();
