// Sounds as inputs of the model: a .wav of 16 bits, resampled, and cut or filled to the model's length as manifest.json
// says.

const ZERO_CROSSINGS = 16; // of the filter that resamples, on each side

/** Returns the mean of the channels of a .wav of 16 bits, in -1 to 1, and its samples a second: {sound, rate}. */
function readSound(buffer) {
  const view = new DataView(buffer);
  const text = (at) => String.fromCharCode(...new Uint8Array(buffer, at, 4));
  let [rate, channels, bits, data, at] = [0, 1, 16, null, 12];
  while (at + 8 <= buffer.byteLength) {
    const size = view.getUint32(at + 4, true);
    if (text(at) === "fmt " && at + 24 <= buffer.byteLength) {
      channels = view.getUint16(at + 10, true);
      rate = view.getUint32(at + 12, true);
      bits = view.getUint16(at + 22, true);
    }
    if (text(at) === "data") data = [at + 8, Math.min(size, buffer.byteLength - at - 8)];
    at += 8 + size + (size % 2);
  }
  if (data === null || bits !== 16 || channels < 1 || rate < 1) throw new Error("Give a .wav of 16 bits.");
  const sound = new Float64Array(Math.floor(data[1] / 2 / channels));
  for (let i = 0; i < sound.length; i++) {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += view.getInt16(data[0] + 2 * (i * channels + c), true);
    sound[i] = sum / channels / 2 ** 15;
  }
  return { sound, rate };
}

/** Returns one sample of a sound that gets `wanted` samples a second, without frequencies that these cannot hold. */
function resampledAt(index, sound, rate, wanted) {
  const kept = Math.min(1, wanted / rate); // of the frequencies
  const reach = Math.ceil(ZERO_CROSSINGS / kept); // old samples on each side of a new one
  const nearest = Math.floor((index * rate) / wanted);
  const rest = ((index * rate) % wanted) / wanted;
  let [sum, weights] = [0, 0];
  for (let step = 1 - reach; step <= reach; step++) {
    const apart = (step - rest) * kept;
    const turn = Math.cos((Math.PI / 2) * Math.min(1, Math.abs(apart) / ZERO_CROSSINGS));
    const weight = turn * turn * (apart === 0 ? 1 : Math.sin(Math.PI * apart) / (Math.PI * apart));
    sum += weight * (sound[nearest + step] ?? 0);
    weights += weight;
  }
  return sum / weights;
}

/** Returns the values of a .wav of 16 bits for the model, as the manifest says. */
export function prepareSound(buffer, how) {
  const { sound, rate } = readSound(buffer);
  const wanted = how.sample_rate;
  const count = rate === wanted ? sound.length : Math.ceil((sound.length * wanted) / rate);
  const length = how.samples ?? count;
  const middle = how.align === "middle";
  const start = middle ? Math.floor(Math.max(0, count - length) / 2) : 0;
  const before = middle ? Math.floor(Math.max(0, length - count) / 2) : 0;
  const values = new Float64Array(length);
  for (let i = 0; i < Math.min(length, count); i++) {
    const value = rate === wanted ? sound[start + i] : resampledAt(start + i, sound, rate, wanted);
    values[before + i] = value * how.peak;
  }
  return values;
}
