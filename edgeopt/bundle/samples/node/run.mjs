// Runs the model of this bundle in Node:
//
//     npm install onnxruntime-node sharp        (in samples/node; sharp is for images)
//     node samples/node/run.mjs                 does this machine compute what the build computed?
//     node samples/node/run.mjs FILE            the model's answer for an image or a .wav (a stream: after its end)
//     node samples/node/run.mjs FILE MAP.png    also writes the class map of an image: each pixel is a class number

import { readFile } from "node:fs/promises";
import * as runtime from "onnxruntime-node";
import { answer, open, verdict } from "../javascript/model.js";

const BUNDLE = new URL("../../", import.meta.url);
const ort = runtime.default ?? runtime;
const exact = (buffer) => buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);

const io = {
  bytes: async (name) => exact(await readFile(new URL(name, BUNDLE))),
  async rgba(buffer) {
    const { default: sharp } = await import("sharp");
    const image = sharp(Buffer.from(buffer), { ignoreIcc: true }).rotate().toColorspace("srgb").ensureAlpha().raw();
    const { data, info } = await image.toBuffer({ resolveWithObject: true });
    return { data: new Uint8Array(exact(data)), height: info.height, width: info.width };
  },
};

/** Writes a class map as a grey image, of which each pixel is the number of a class. */
async function writeMap(path, map) {
  if (map === null) throw new Error("The model gives no class map of an image, so there is none to write.");
  if (map.classes.some((index) => index > 255))
    throw new Error("The class map has classes above 255, which a grey image of 8 bits cannot hold.");
  const { default: sharp } = await import("sharp");
  const raw = { width: map.width, height: map.height, channels: 1 };
  await sharp(Uint8Array.from(map.classes), { raw }).toColourspace("b-w").toFile(path);
}

try {
  const model = await open(io, ort);
  console.log(verdict(model));
  if (model.mistakes.length) process.exitCode = 1;
  else if (process.argv.length > 2) {
    const { text, map } = await answer(io, ort, model, exact(await readFile(process.argv[2])));
    console.log(text);
    if (process.argv.length > 3) await writeMap(process.argv[3], map);
  }
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
