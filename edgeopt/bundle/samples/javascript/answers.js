// What outputs say: the best classes of scores, and the class of each place, such as each pixel.

const SHOWN_CLASSES = 3;

/** Tells whether an output has scores for the classes of each place. */
const hasClassMap = ({ class_axis }, { dims }) => class_axis !== null && dims.length > 2;

/** Returns the best class of each place of the first sample: {classes, shape}. */
export function classMap({ class_axis }, { data, dims }) {
  const axis = class_axis < 0 ? class_axis + dims.length : class_axis;
  const product = (sizes) => sizes.reduce((total, size) => total * size, 1);
  const [outer, count, inner] = [product(dims.slice(1, axis)), dims[axis], product(dims.slice(axis + 1))];
  const classes = new Uint16Array(outer * inner);
  for (let place = 0; place < classes.length; place++) {
    const first = Math.floor(place / inner) * count * inner + (place % inner);
    for (let index = 1; index < count; index++)
      if (data[first + index * inner] > data[first + classes[place] * inner]) classes[place] = index;
  }
  return { classes, shape: dims.filter((_, dimension) => dimension !== 0 && dimension !== axis) };
}

/** Returns the class map of an image: {classes, height, width}; null if the model gives none. */
export function imageMap(outputs, manifest) {
  for (const tensor of manifest.outputs) {
    if (!hasClassMap(tensor, outputs[tensor.name])) continue;
    const { classes, shape } = classMap(tensor, outputs[tensor.name]);
    if (shape.length === 2) return { classes, height: shape[0], width: shape[1] };
  }
  return null;
}

function describeMap(tensor, output, labels) {
  const { classes, shape } = classMap(tensor, output);
  const counts = new Map();
  for (const index of classes) counts.set(index, (counts.get(index) ?? 0) + 1);
  const ranked = [...counts].sort(([a, many], [b, more]) => more - many || a - b);
  const shares = ranked.map(([index, count]) => {
    const share = ((100 * count) / classes.length).toFixed(1);
    return `${labels[index] ?? index}: ${share} %`;
  });
  return [`${tensor.name}: class map of ${shape.join("x")}`, ...shares].join("\n");
}

/** Returns the best classes of scores, the shares of the classes of maps, and the form of other outputs. */
export function describe(outputs, manifest) {
  const { labels } = manifest;
  return manifest.outputs.map((tensor) => {
    const { data, dims, type } = outputs[tensor.name];
    if (hasClassMap(tensor, outputs[tensor.name])) return describeMap(tensor, outputs[tensor.name], labels);
    if (dims.length !== 2 || ![1, -1].includes(tensor.class_axis)) return `${tensor.name}: ${type} [${dims}]`;
    const ranked = Array.from(data.slice(0, dims[1]), (score, index) => ({ score, index }));
    ranked.sort((a, b) => b.score - a.score);
    return ranked.slice(0, SHOWN_CLASSES).map(({ score, index }) => `${labels[index] ?? index}: ${score}`).join("\n");
  }).join("\n");
}
