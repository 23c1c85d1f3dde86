// Images cut off at every structure: inside the header, at the edges of each table and cluster.

import { describeHostile, type HostileCase, imageFile } from "../support/hostile-case.ts";
import { QCOW2_SAMPLES, qcow2Sample, qedSample } from "../support/hostile-samples.ts";
import type { ImageRegion } from "../support/qcow2-tree-builder.ts";

/** Lengths at the edges of the header's parts, of every region and in the middle of each. */
function cutLengths(
  fileSize: number,
  regions: readonly ImageRegion[],
  inHeader: readonly number[],
): number[] {
  const lengths = new Set([0, 1, fileSize - 1, fileSize - 512]);
  for (const edge of [
    ...inHeader,
    ...regions.flatMap(({ offset, length }) => [offset, offset + length]),
  ]) {
    for (const length of [edge - 1, edge, edge + 1]) {
      lengths.add(length);
    }
  }
  for (const { offset, length } of regions) {
    lengths.add(offset + Math.floor(length / 2));
    lengths.add(offset + 8);
  }
  return [...lengths].filter((length) => length >= 0 && length < fileSize).sort((a, b) => a - b);
}

/** Edges of header fields: magic, version, cluster_bits, size, L1, refcounts, v2 end, v3 ends. */
const QCOW2_HEADER_EDGES = [4, 8, 16, 20, 24, 32, 40, 48, 60, 72, 96, 104, 112];

const qcow2Cases = QCOW2_SAMPLES.flatMap((sample): HostileCase[] => {
  const { bytes, regions } = qcow2Sample(sample);
  return cutLengths(bytes.length, regions, QCOW2_HEADER_EDGES).map((length) => ({
    name: `${sample} cut to ${length} of ${bytes.length} bytes`,
    format: "qcow2",
    write: (directory) => imageFile(qcow2Sample(sample).truncated(length))(directory),
  }));
});

describeHostile("truncated qcow2 images", qcow2Cases, 4);

const QED_HEADER_EDGES = [4, 8, 12, 16, 24, 32, 40, 48, 56, 60, 64];

const qed = qedSample();
describeHostile(
  "truncated QED images",
  cutLengths(qed.bytes.length, qed.regions, QED_HEADER_EDGES).map((length) => ({
    name: `QED cut to ${length} of ${qed.bytes.length} bytes`,
    format: "qed",
    write: (directory) => imageFile(qedSample().truncated(length), "image.qed")(directory),
  })),
);
