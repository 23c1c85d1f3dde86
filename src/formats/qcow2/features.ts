/** Feature bits of qcow2 version 3. Source: qcow2 specification, "Header", bytes 72 to 95. */

export const INCOMPATIBLE = {
  dirty: 1n << 0n,
  corrupt: 1n << 1n,
  externalDataFile: 1n << 2n,
  compressionType: 1n << 3n,
  extendedL2: 1n << 4n,
} as const;

export const INCOMPATIBLE_KNOWN = Object.values(INCOMPATIBLE).reduce((mask, bit) => mask | bit, 0n);

export const COMPATIBLE_LAZY_REFCOUNTS = 1n << 0n;

export const AUTOCLEAR = {
  bitmaps: 1n << 0n,
  rawExternalData: 1n << 1n,
} as const;

/** Kinds of the feature name table's rows. Source: "Feature name table". */
export const FEATURE_KIND = { incompatible: 0, compatible: 1, autoclear: 2 } as const;

/** One row of the feature name table: which bit of which mask has which name. */
export interface FeatureName {
  readonly kind: number;
  readonly bit: number;
  readonly name: string;
}

/** `"shiny new thing"`, or `bit 17`, for each bit that is set in `mask`. */
export function namesOfBits(mask: bigint, kind: number, names: readonly FeatureName[]): string[] {
  const result: string[] = [];
  for (let bit = 0; bit < 64; bit++) {
    if ((mask & (1n << BigInt(bit))) === 0n) continue;
    const row = names.find((name) => name.kind === kind && name.bit === bit);
    result.push(row === undefined || row.name === "" ? `bit ${bit}` : `"${row.name}" (bit ${bit})`);
  }
  return result;
}
