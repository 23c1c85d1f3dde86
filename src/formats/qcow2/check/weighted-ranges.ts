/** Byte ranges that may overlap, cut into pieces that do not: each byte is read once, however often it counts. */

export interface ByteRange {
  /** First byte, and the one behind the last. */
  readonly start: number;
  readonly end: number;
  readonly active: boolean;
}

/** A piece, and how many ranges cover it. */
export interface WeightedRange {
  readonly start: number;
  readonly end: number;
  /** Ranges that are active. */
  readonly active: number;
  /** All ranges. */
  readonly total: number;
}

interface Edge {
  readonly at: number;
  readonly active: number;
  readonly total: number;
}

/** Pieces in the order of the file; empty ranges are none. */
export function* overlay(ranges: readonly ByteRange[]): Generator<WeightedRange> {
  const edges: Edge[] = [];
  for (const { start, end, active } of ranges) {
    if (end <= start) continue;
    edges.push({ at: start, active: active ? 1 : 0, total: 1 });
    edges.push({ at: end, active: active ? -1 : 0, total: -1 });
  }
  edges.sort((a, b) => a.at - b.at);
  let start = 0;
  let active = 0;
  let total = 0;
  for (const edge of edges) {
    if (total > 0 && edge.at > start) yield { start, end: edge.at, active, total };
    start = edge.at;
    active += edge.active;
    total += edge.total;
  }
}
