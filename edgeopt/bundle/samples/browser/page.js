// The page: shows the self-test, then the model's answer for a chosen file.

import { answer, open, verdict } from "../javascript/model.js";

const BUNDLE = new URL("../../", import.meta.url);
const show = (id, text) => { document.getElementById(id).textContent = text; };

const colorOf = (index) => `hsl(${(index * 137.5) % 360} 70% 50%)`; // neighbouring numbers get distant colours

/** Shows an empty picture and an empty legend; returns the context to paint with. */
function clearPicture(width, height, isMap) {
  const canvas = document.getElementById("picture");
  document.getElementById("legend").replaceChildren();
  [canvas.width, canvas.height, canvas.hidden] = [width, height, width === 0];
  canvas.className = isMap ? "map" : "";
  return canvas.getContext("2d");
}

function addToLegend(text, color) {
  const name = document.createElement("span");
  name.textContent = text;
  name.style.borderColor = color;
  document.getElementById("legend").append(name);
}

/** Paints a class map, a colour for each class. */
function paintMap(map, labels) {
  const context = clearPicture(map.width, map.height, true);
  for (const index of [...new Set(map.classes)].sort((a, b) => a - b)) {
    context.fillStyle = colorOf(index);
    map.classes.forEach((found, place) => {
      if (found === index) context.fillRect(place % map.width, Math.floor(place / map.width), 1, 1);
    });
    addToLegend(labels[index] ?? index, context.fillStyle);
  }
}

/** Paints an image with its boxes, a colour for each class. */
async function paintBoxes(boxes, buffer) {
  const image = await decode(buffer);
  const context = clearPicture(image.width, image.height, false);
  context.drawImage(image, 0, 0);
  const line = Math.max(1, Math.round(Math.max(image.width, image.height) / 200));
  for (const { index, label, score, corners } of boxes) {
    const [left, top, right, bottom] = corners.map(Math.round);
    context.fillStyle = colorOf(index);
    for (const y of [top, bottom - line]) context.fillRect(left, y, right - left, line);
    for (const x of [left, right - line]) context.fillRect(x, top, line, bottom - top);
    context.font = `${6 * line}px system-ui, sans-serif`;
    const text = `${label} ${score.toFixed(2)}`;
    context.fillRect(left, top, context.measureText(text).width + 3 * line, 8 * line);
    context.fillStyle = "white";
    context.fillText(text, left + 1.5 * line, top + 6 * line);
  }
  for (const [index, label] of new Map(boxes.map((box) => [box.index, box.label]))) addToLegend(label, colorOf(index));
}

/** Decodes an image, upright; its colour profile does not count. */
const decode = (buffer) =>
  createImageBitmap(new Blob([buffer]), { imageOrientation: "from-image", colorSpaceConversion: "none" });

const io = {
  async bytes(name) {
    const response = await fetch(new URL(name, BUNDLE));
    if (!response.ok) throw new Error(`${name} cannot be loaded: serve the whole bundle, not only this folder.`);
    return response.arrayBuffer();
  },
  async rgba(buffer) {
    const bitmap = await decode(buffer);
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
        const buffer = await field.files[0].arrayBuffer();
        const { text, map, boxes } = await answer(io, ort, model, buffer);
        if (boxes) await paintBoxes(boxes, buffer);
        else if (map) paintMap(map, model.manifest.labels);
        else clearPicture(0, 0);
        show("answer", text);
      } catch (error) {
        clearPicture(0, 0);
        show("answer", error.message);
      }
    });
  }
} catch (error) {
  show("check", `self-test: ${error.message}`);
}
