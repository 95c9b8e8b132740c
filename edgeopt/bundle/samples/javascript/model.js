// Runs the model of this bundle in JavaScript: what the page in ../browser and the program in ../node share.
// Everything that is known of the model is in manifest.json; take from this file what your app needs.
//
// `io` reads files where the code runs: `io.bytes(name)` gives the ArrayBuffer of a file of the bundle, and
// `io.rgba(buffer)` decodes an image to {data, height, width}, four bytes for each pixel.

import { describe, imageMap } from "./answers.js";
import { makeArray } from "./arrays.js";
import { describeBoxes, findWrongBoxes, readBoxes, toImage } from "./boxes.js";
import { prepareSound } from "./sounds.js";
import { chunkLength, cutSound, firstStates } from "./streams.js";

/** Returns the pixels of an image: {data, height, width, channels}, a byte for each value. */
function dropAlpha({ data: rgba, height, width }, color) {
  const channels = color === "gray" ? 1 : 3;
  const data = new Uint8Array(width * height * channels);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const [red, green, blue, alpha] = rgba.subarray(4 * pixel, 4 * pixel + 4);
    if (alpha !== 255) throw new Error("The image is transparent: its colours are not certain. Save it without that.");
    if (channels === 1) data[pixel] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16; // ITU-R 601
    else data.set([red, green, blue], 3 * pixel);
  }
  return { data, height, width, channels };
}

/** Returns, for each new pixel, the first old one that it replaces and their weights: a triangle, as in Pillow. */
function weightsOf(before, after) {
  const step = before / after;
  const support = Math.max(1, step);
  return Array.from({ length: after }, (_, index) => {
    const center = (index + 0.5) * step;
    const first = Math.max(0, Math.floor(center - support));
    const last = Math.min(before - 1, Math.ceil(center + support));
    const weights = [];
    for (let old = first; old <= last; old++) weights.push(Math.max(0, 1 - Math.abs(old + 0.5 - center) / support));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Returns an image in another size: bilinear, over all pixels that one replaces. */
function resizeImage({ data, height, width, channels }, newHeight, newWidth) {
  if (height === newHeight && width === newWidth) return { data, height, width, channels };
  const wide = new Uint8Array(height * newWidth * channels);
  weightsOf(width, newWidth).forEach(({ first, weights }, x) => {
    for (let y = 0; y < height; y++)
      for (let c = 0; c < channels; c++) {
        let sum = 0;
        weights.forEach((weight, i) => { sum += weight * data[(y * width + first + i) * channels + c]; });
        wide[(y * newWidth + x) * channels + c] = Math.round(sum);
      }
  });
  const whole = new Uint8Array(newHeight * newWidth * channels);
  weightsOf(height, newHeight).forEach(({ first, weights }, y) => {
    for (let x = 0; x < newWidth * channels; x++) {
      let sum = 0;
      weights.forEach((weight, i) => { sum += weight * wide[(first + i) * newWidth * channels + x]; });
      whole[y * newWidth * channels + x] = Math.round(sum);
    }
  });
  return { data: whole, height: newHeight, width: newWidth, channels };
}

/** Returns the part of an image from (top, left); pixels outside of it are black. */
function cutImage({ data, height, width, channels }, top, left, newHeight, newWidth) {
  const part = new Uint8Array(newHeight * newWidth * channels);
  for (let y = 0; y < newHeight; y++)
    for (let x = 0; x < newWidth; x++) {
      const [oldY, oldX] = [y + top, x + left];
      if (oldY < 0 || oldX < 0 || oldY >= height || oldX >= width) continue;
      for (let c = 0; c < channels; c++)
        part[(y * newWidth + x) * channels + c] = data[(oldY * width + oldX) * channels + c];
    }
  return { data: part, height: newHeight, width: newWidth, channels };
}

const roundHalfEven = (value) => {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
};

/** Returns the size to which an image is resized, and where the model's input begins in it: {tall, wide, top, left}. */
function fitOf({ height: oldHeight, width: oldWidth }, { height, width, resize, crop_ratio }) {
  if (height === null) return { tall: oldHeight, wide: oldWidth, top: 0, left: 0 };
  if (resize === "stretch") return { tall: height, wide: width, top: 0, left: 0 };
  if (resize === "pad") {
    const ratio = Math.min(width / oldWidth, height / oldHeight);
    const [tall, wide] = [oldHeight, oldWidth].map((side) => Math.max(1, roundHalfEven(side * ratio)));
    return { tall, wide, top: -Math.floor((height - tall) / 2), left: -Math.floor((width - wide) / 2) };
  }
  let tall, wide;
  if (oldHeight * width >= oldWidth * height) { // crop: the shorter side decides
    wide = roundHalfEven(width / crop_ratio);
    tall = Math.floor((wide * oldHeight) / oldWidth);
  } else {
    tall = roundHalfEven(height / crop_ratio);
    wide = Math.floor((tall * oldWidth) / oldHeight);
  }
  return { tall, wide, top: roundHalfEven((tall - height) / 2), left: roundHalfEven((wide - width) / 2) };
}

/** Returns an image in the size that the model takes. */
function resizeToFit(image, how) {
  const { tall, wide, top, left } = fitOf(image, how);
  return cutImage(resizeImage(image, tall, wide), top, left, how.height ?? tall, how.width ?? wide);
}

/** Returns an image as the values and the shape of a batch of one sample, as the manifest says, and its size and fit. */
function prepareImage(image, how, dtype) {
  const { data, height, width, channels } = resizeToFit(image, how);
  const values = makeArray(dtype, data.length);
  const of = (list, channel) => list[list.length === 1 ? 0 : channel];
  for (let pixel = 0; pixel < height * width; pixel++)
    for (let channel = 0; channel < channels; channel++) {
      const byte = data[pixel * channels + (how.color === "bgr" ? channels - 1 - channel : channel)];
      const place = how.layout === "nchw" ? channel * height * width + pixel : pixel * channels + channel;
      values[place] = how.dtype === "uint8" ? byte : (byte / how.scale - of(how.mean, channel)) / of(how.std, channel);
    }
  const shape = how.layout === "nchw" ? [1, channels, height, width] : [1, height, width, channels];
  return { values, shape, size: { height: image.height, width: image.width }, fit: fitOf(image, how) };
}

/** Returns a file's content as the values and the shape of the model's input. */
export async function makeInput(io, buffer, tensor) {
  const how = tensor.preprocessing;
  if (how === null) throw new Error(`manifest.json has no preprocessing for '${tensor.name}', so no file can be its input.`);
  if (how.kind === "sound") {
    const sound = prepareSound(buffer, how);
    const values = makeArray(tensor.dtype, sound.length);
    sound.forEach((value, i) => { values[i] = tensor.dtype.includes("int") ? Math.round(value) : value; });
    return { values, shape: [...Array(tensor.shape.length - 1).fill(1), sound.length] };
  }
  return prepareImage(dropAlpha(await io.rgba(buffer), how.color), how, tensor.dtype);
}

/** Returns a file's content as the inputs of a model with states: a sound in chunks, an image as one frame. */
async function makeChunks(io, buffer, tensor) {
  const how = tensor.preprocessing;
  if (how?.kind !== "sound") return [await makeInput(io, buffer, tensor)];
  const length = chunkLength(tensor);
  const whole = await makeInput(io, buffer, { ...tensor, preprocessing: { ...how, samples: null } });
  return cutSound(whole, length, tensor.dtype);
}

/** Returns values as a tensor of the model's batch: if it is fixed, all samples are the same. */
function makeTensor(ort, tensor, { values: one, shape }) {
  const batch = typeof tensor.shape[0] === "number" ? tensor.shape[0] : 1;
  const values = makeArray(tensor.dtype, batch * one.length);
  for (let i = 0; i < batch; i++) values.set(one, i * one.length);
  return new ort.Tensor(tensor.dtype, values, [batch, ...shape.slice(1)]);
}

const readArray = async (io, entry) => makeArray(entry.dtype, await io.bytes(entry.file));

function difference(found, expected, mean) {
  if (found.length !== expected.length) return Infinity;
  let [largest, sum] = [0, 0];
  for (let i = 0; i < found.length; i++) {
    const apart = found[i] === expected[i] ? 0 : Math.abs(Number(found[i]) - Number(expected[i]));
    if (Number.isNaN(apart)) return Infinity;
    largest = Math.max(largest, apart);
    sum += apart;
  }
  return mean ? sum / Math.max(1, found.length) : largest;
}

const largestOf = (scores) => scores.reduce((best, score, index) => (score > scores[best] ? index : best), 0);

/** Compares preprocessing, outputs and answers with those of the build; returns what is wrong. */
async function findMistakes(io, ort, session, manifest) {
  const mistakes = [];
  const feeds = {};
  for (const entry of manifest.golden.filter(({ role }) => role !== "output")) {
    const expected = await readArray(io, entry);
    if (entry.role === "input") feeds[entry.name] = new ort.Tensor(entry.dtype, expected, entry.shape);
    if (!entry.raw.length) continue;
    const tensor = manifest.inputs.find(({ name }) => name === entry.name);
    const files = [];
    for (const name of entry.raw) files.push((await makeInput(io, await io.bytes(name), tensor)).values);
    const whole = files.flatMap((values) => Array.from(values));
    const apart = difference(whole, expected, entry.role === "resized");
    const what = entry.role === "resized" ? "resizing" : "preprocessing";
    if (!(apart <= entry.tolerance))
      mistakes.push(`${what} of '${entry.name}' is off by ${apart}; ${entry.tolerance} is allowed`);
  }
  const outputs = await session.run(feeds);
  for (const entry of manifest.golden.filter(({ role }) => role === "output")) {
    const [found, expected] = [outputs[entry.name].data, await readArray(io, entry)];
    const isShare = entry.different_ratio > 0; // whole numbers: a share of them may differ
    const differing = expected.filter((value, index) => value !== found[index]).length;
    const share = found.length === expected.length ? differing / Math.max(1, expected.length) : 1;
    const apart = isShare ? share : difference(found, expected, false);
    const allowed = isShare ? entry.different_ratio : entry.tolerance;
    if (!(apart <= allowed)) mistakes.push(`output '${entry.name}' is off by ${apart}; ${allowed} is allowed`);
  }
  for (const { output, sample, class_index, label, box } of manifest.answers) {
    if (box !== null) continue;
    const { data, dims } = outputs[output];
    const index = largestOf(data.slice(sample * dims[1], (sample + 1) * dims[1]));
    if (index !== class_index || (label !== null && manifest.labels[index] !== label))
      mistakes.push(`sample ${sample} is '${label ?? class_index}', not '${manifest.labels[index] ?? index}'`);
  }
  return [...mistakes, ...findWrongBoxes(manifest, outputs)];
}

/** Loads the model, and checks it: {manifest, session, mistakes}. */
export async function open(io, ort) {
  const manifest = JSON.parse(new TextDecoder().decode(await io.bytes("manifest.json")));
  if (Object.keys(manifest.files).some((name) => name.endsWith(".data")))
    throw new Error("The model has weights in a second file, which this sample does not load.");
  const session = await ort.InferenceSession.create(new Uint8Array(await io.bytes("model.onnx")));
  const mistakes = manifest.golden.length ? await findMistakes(io, ort, session, manifest) : [];
  return { manifest, session, mistakes };
}

/** Says in words what the check has found. */
export function verdict({ manifest, mistakes }) {
  if (mistakes.length) return mistakes.map((mistake) => `self-test: ${mistake}`).join("\n");
  return manifest.golden.length ? "self-test: passed" : "self-test: this bundle has no golden files";
}

/** Returns the outputs that are neither the next value of a state nor a map that gives boxes. */
function shownOutputs({ inputs, outputs, boxes }) {
  const names = [...inputs.map(({ next_value }) => next_value), boxes?.heatmap, boxes?.sides];
  return outputs.filter(({ name }) => !names.includes(name));
}

/**
 * Returns the model's answer for the content of a file: {text, map, boxes}. `map` is the class map of an image, and
 * `boxes` are those in an image, in its pixels; both may be null. A model with states answers after the last chunk.
 */
export async function answer(io, ort, { manifest, session }, buffer) {
  const states = manifest.inputs.filter(({ next_value }) => next_value !== null);
  const [tensor, ...others] = manifest.inputs.filter(({ next_value }) => next_value === null);
  if (tensor === undefined || others.length)
    throw new Error("The model takes several inputs: make them as manifest.json says, and call session.run.");
  const feeds = firstStates(ort, states);
  const chunks = states.length ? await makeChunks(io, buffer, tensor) : [await makeInput(io, buffer, tensor)];
  let outputs = {};
  for (const one of chunks) {
    outputs = await session.run({ ...feeds, [tensor.name]: makeTensor(ort, tensor, one) });
    for (const { name, next_value } of states) feeds[name] = outputs[next_value];
  }
  const shown = { ...manifest, outputs: shownOutputs(manifest) };
  const lines = shown.outputs.length ? [describe(outputs, shown)] : [];
  const { size, fit } = chunks[0];
  const boxes = manifest.boxes && readBoxes(manifest, outputs).map((box) => toImage(box, size, fit));
  if (boxes) lines.push(describeBoxes(boxes, manifest.boxes));
  return { text: lines.join("\n"), map: imageMap(outputs, shown), boxes };
}
