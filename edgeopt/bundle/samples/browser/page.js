// The page: shows the self-test, then the model's answer for a chosen file.

import { answer, open, verdict } from "../javascript/model.js";

const BUNDLE = new URL("../../", import.meta.url);
const show = (id, text) => { document.getElementById(id).textContent = text; };

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
        show("answer", await answer(io, ort, model, await field.files[0].arrayBuffer()));
      } catch (error) {
        show("answer", error.message);
      }
    });
  }
} catch (error) {
  show("check", `self-test: ${error.message}`);
}
