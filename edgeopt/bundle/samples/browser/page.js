// The page: shows the self-test, then the model's answer for a chosen file.

import { answer, open, verdict } from "../javascript/model.js";

const BUNDLE = new URL("../../", import.meta.url);
const show = (id, text) => { document.getElementById(id).textContent = text; };

/** Paints a class map, a colour for each class. */
function paint(map, labels) {
  const canvas = document.getElementById("map");
  canvas.hidden = map === null;
  document.getElementById("legend").replaceChildren();
  if (map === null) return;
  [canvas.width, canvas.height] = [map.width, map.height];
  const context = canvas.getContext("2d");
  const hue = (index) => (index * 137.5) % 360; // neighbouring numbers get distant colours
  for (const index of [...new Set(map.classes)].sort((a, b) => a - b)) {
    context.fillStyle = `hsl(${hue(index)} 70% 50%)`;
    map.classes.forEach((found, place) => {
      if (found === index) context.fillRect(place % map.width, Math.floor(place / map.width), 1, 1);
    });
    const name = document.createElement("span");
    name.textContent = labels[index] ?? index;
    name.style.borderColor = context.fillStyle;
    document.getElementById("legend").append(name);
  }
}

const io = {
  async bytes(name) {
    const response = await fetch(new URL(name, BUNDLE));
    if (!response.ok) throw new Error(`${name} cannot be loaded: serve the whole bundle, not only this folder.`);
    return response.arrayBuffer();
  },
  async rgba(buffer) {
    const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
    const bitmap = await createImageBitmap(new Blob([buffer]), options);
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
    context.drawImage(bitmap, 0, 0);
    return context.getImageData(0, 0, bitmap.width, bitmap.height);
  },
};

try {
  const ort = await import("./ort.wasm.min.mjs");
  const model = await open(io, ort);
  show("check", verdict(model));
  if (!model.mistakes.length) {
    const field = document.getElementById("file");
    field.disabled = false;
    field.addEventListener("change", async () => {
      try {
        const { text, map } = await answer(io, ort, model, await field.files[0].arrayBuffer());
        paint(map, model.manifest.labels);
        show("answer", text);
      } catch (error) {
        paint(null, []);
        show("answer", error.message);
      }
    });
  }
} catch (error) {
  show("check", `self-test: ${error.message}`);
}
