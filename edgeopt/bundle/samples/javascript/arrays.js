// Arrays of the types of manifest.json.

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, bool: Uint8Array,
  int32: Int32Array, uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array, uint16: Uint16Array,
  int16: Int16Array,
};

/** Returns an array of a type of the manifest. */
export function makeArray(dtype, content) {
  if (ARRAYS[dtype] === undefined) throw new Error(`This page has no arrays of ${dtype}.`);
  return new ARRAYS[dtype](content);
}
