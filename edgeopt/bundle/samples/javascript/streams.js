// Models that take a sound in chunks: how it is cut, and the states that go from one chunk to the next.

import { makeArray } from "./arrays.js";

/** Returns the states before the first chunk, by name: zeros, for a batch of one if any batch goes. */
export function firstStates(ort, states) {
  return Object.fromEntries(states.map(({ name, dtype, shape, begins_with_zeros }) => {
    const sizes = shape.map((size) => (size === "batch" ? 1 : size));
    if (!begins_with_zeros)
      throw new Error(`The state '${name}' does not begin with zeros: give its first value to session.run yourself.`);
    if (!sizes.every(Number.isInteger))
      throw new Error(`The state '${name}' has no fixed size: give its first value to session.run yourself.`);
    const values = makeArray(dtype, sizes.reduce((total, size) => total * size, 1));
    return [name, new ort.Tensor(dtype, values, sizes)];
  }));
}

/** Returns the length of a chunk. */
export function chunkLength({ name, preprocessing }) {
  if (preprocessing.samples === null)
    throw new Error(
      `manifest.json has no chunk length for '${name}' (samples is null): set it in the task, and build again.`,
    );
  return preprocessing.samples;
}

/** Cuts the values and the shape of a whole sound into chunks, the last one filled with zeros. */
export function cutSound({ values, shape }, length, dtype) {
  return Array.from({ length: Math.max(1, Math.ceil(values.length / length)) }, (_, index) => {
    const chunk = makeArray(dtype, length);
    chunk.set(values.subarray(index * length, (index + 1) * length));
    return { values: chunk, shape: [...shape.slice(0, -1), length] };
  });
}
