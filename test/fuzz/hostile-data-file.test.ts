// External data files: missing parts, and mappings that an image with a data file must not have.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describeHostile, type HostileCase } from "../support/hostile-case.ts";
import { buildQcow2, type Qcow2Image, type Qcow2Options } from "../support/qcow2-builder.ts";
import { AUTOCLEAR_RAW_DATA_FILE } from "../support/qcow2-header-builder.ts";
import { Random } from "../support/random.ts";

const CLUSTER = 4096;
const SIZE = 16 * CLUSTER;
const COPIED = 1n << 63n;
const bytes = new Random("data file", 1).bytes(SIZE);

/** An image with clusters 0, 1 and 5 in "disk.data", of which `dataBytes` exist. */
function withDataFile(
  name: string,
  change: (image: Qcow2Image) => unknown,
  more: Partial<HostileCase> & {
    readonly dataBytes?: number;
    readonly options?: Qcow2Options;
  } = {},
): HostileCase {
  const { dataBytes = SIZE, options = {}, ...rest } = more;
  const write: HostileCase["write"] = (directory) => {
    const image = buildQcow2({
      clusterBits: 12,
      virtualSize: SIZE,
      dataFile: "disk.data",
      clusters: {
        0: { kind: "data", bytes: bytes.subarray(0, CLUSTER) },
        1: { kind: "data", bytes: bytes.subarray(CLUSTER, 2 * CLUSTER) },
        5: { kind: "data", bytes: bytes.subarray(5 * CLUSTER, 6 * CLUSTER) },
        6: { kind: "zero" },
      },
      ...options,
    });
    change(image);
    writeFileSync(join(directory, "disk.data"), bytes.subarray(0, dataBytes));
    writeFileSync(join(directory, "base.img"), bytes);
    return image.write(join(directory, "image.qcow2"));
  };
  return { name, format: "qcow2", write, ...rest };
}

const intact = (): void => {};

describeHostile("external data files", [
  withDataFile("intact", intact, { expected: "open", command: "always" }),
  withDataFile("raw", intact, {
    options: { header: { autoclear_features: AUTOCLEAR_RAW_DATA_FILE } },
    expected: "open",
  }),
  withDataFile("raw, with a backing file", intact, {
    options: {
      header: { autoclear_features: AUTOCLEAR_RAW_DATA_FILE },
      backingFile: "base.img",
      backingFormat: "raw",
    },
  }),
  withDataFile("empty", intact, { dataBytes: 0 }),
  withDataFile("shorter than the disk", intact, { dataBytes: CLUSTER + 1000 }),
  withDataFile("that ends before the last cluster in use", intact, { dataBytes: 3 * CLUSTER }),
  withDataFile("an entry with another host offset", (image) => image.setL2(5, COPIED | 0x1000n)),
  withDataFile("an entry of cluster 0 without COPIED", (image) => image.setL2(0, 0)),
  withDataFile("an entry past the end of the data file", (image) =>
    image.setL2(9, COPIED | (1n << 40n)),
  ),
  withDataFile("an entry in cluster 0 of the data file for another cluster", (image) =>
    image.setL2(9, COPIED),
  ),
  withDataFile("a compressed entry", (image) => image.setL2(9, (1n << 62n) | 0x1000n)),
  withDataFile("a zero cluster with another host offset", (image) =>
    image.setL2(9, COPIED | 0x1001n),
  ),
  withDataFile("an unaligned entry", (image) => image.setL2(5, COPIED | 0x5200n)),
  withDataFile("the incompatible bit cleared", (image) =>
    image.setHeader("incompatible_features", 0),
  ),
  withDataFile("with snapshots", intact, { options: { snapshots: [{ name: "not allowed" }] } }),
  withDataFile("an L2 table past the end of the image", (image) =>
    image.setL1(0, COPIED | (1n << 40n)),
  ),
]);
