// Boxes of a detector: read from its two maps as manifest.json says, and moved back to the image.

/** Tells whether a value is a peak: of equal neighbours, the first counts. `at` gives the value of a place. */
function isPeak(at, row, column) {
  const value = at(row, column);
  for (let number = 0; number < 9; number++) {
    const neighbour = at(row + Math.floor(number / 3) - 1, column + (number % 3) - 1);
    if (!(number < 4 ? value > neighbour : value >= neighbour)) return false;
  }
  return true;
}

/**
 * Returns the boxes of a sample, the highest score first: {index, label, score, corners}. Corners are left, top, right
 * and bottom in pixels of the model's input.
 */
export function readBoxes({ boxes: maps, labels }, outputs, sample = 0) {
  const { data, dims: [, classes, height, width] } = outputs[maps.heatmap];
  const found = [];
  for (let index = 0; index < classes; index++) {
    const start = (sample * classes + index) * height * width;
    const isInside = (row, column) => row >= 0 && column >= 0 && row < height && column < width;
    const at = (row, column) => (isInside(row, column) ? data[start + row * width + column] : -Infinity);
    for (let place = 0; place < height * width; place++) {
      const [row, column] = [Math.floor(place / width), place % width];
      const score = 1 / (1 + Math.exp(-at(row, column)));
      if (!(score >= maps.min_score) || !isPeak(at, row, column)) continue;
      const [left, top, right, bottom] = [0, 1, 2, 3].map((side) => {
        const logarithm = outputs[maps.sides].data[(sample * 4 + side) * height * width + place];
        return maps.stride * Math.exp(Math.min(Math.max(logarithm, maps.log_sides[0]), maps.log_sides[1]));
      });
      const [x, y] = [(column + 0.5) * maps.stride, (row + 0.5) * maps.stride];
      const corners = [x - left, y - top, x + right, y + bottom];
      found.push({ index, label: labels[index] ?? `${index}`, score, corners });
    }
  }
  return found.sort((a, b) => b.score - a.score).slice(0, maps.max_boxes);
}

/** Returns a box in the pixels of the image that was fitted to the model's input as `fit` says, and inside of it. */
export function toImage(box, { height, width }, { tall, wide, top, left }) {
  const move = (place, start, before, after) => Math.min(Math.max(((place + start) * before) / after, 0), before);
  const corners = box.corners.map((place, side) =>
    side % 2 ? move(place, top, height, tall) : move(place, left, width, wide));
  return { ...box, corners };
}

/** Returns left, top, right and bottom as text. */
const placeOf = ({ corners }) => corners.map((corner) => corner.toFixed(1)).join(" ");

/** Returns one line for each box. */
export function describeBoxes(boxes, { min_score }) {
  if (!boxes.length) return `no boxes with a score of at least ${min_score}`;
  return boxes.map((box) => `${box.label}: ${box.score.toFixed(3)} at ${placeOf(box)}`).join("\n");
}

/** Tells whether a box is that of an answer, within its tolerances. */
function isSameBox({ box: right, label, class_index }, box) {
  const apart = Math.max(...box.corners.map((corner, side) => Math.abs(corner - right.corners[side])));
  const isNear = apart <= right.tolerance && Math.abs(box.score - right.score) <= right.score_tolerance;
  return isNear && box.label === (label ?? `${class_index}`);
}

/** Compares the boxes of the golden inputs: certain ones have to be found, and nothing that is no answer. */
export function findWrongBoxes(manifest, outputs) {
  const answers = manifest.answers.filter(({ box }) => box !== null);
  const mistakes = [];
  for (const sample of new Set(answers.map((answer) => answer.sample))) {
    const right = answers.filter((answer) => answer.sample === sample);
    const found = readBoxes(manifest, outputs, sample);
    for (const answer of right)
      if (answer.box.is_certain && !found.some((box) => isSameBox(answer, box)))
        mistakes.push(`sample ${sample} has no '${answer.label ?? answer.class_index}' at ${placeOf(answer.box)}`);
    for (const box of found)
      if (!right.some((answer) => isSameBox(answer, box)))
        mistakes.push(`sample ${sample} has a '${box.label}' at ${placeOf(box)} that the build has not found`);
  }
  return mistakes;
}
