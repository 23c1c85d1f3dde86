/** What the tables of a QED image refer to is used, over images laid out by hand. */

import { describe, expect, it } from "vitest";
import type { FileAllocation } from "../../../../src/formats/allocation.ts";
import { countQedAllocation } from "../../../../src/formats/qed/allocation.ts";
import { readQedLayout } from "../../../../src/formats/qed/layout.ts";
import { buildQed, type QedCluster, type QedOptions } from "../../../support/qed-builder.ts";
import { MemoryStorage } from "../../memory-storage.ts";

const CLUSTER = 4096;
const DATA: QedCluster = { kind: "data", bytes: Uint8Array.of(1) };
const OPTIONS: QedOptions = {
  clusterSize: CLUSTER,
  tableClusters: 2,
  virtualSize: 64 * CLUSTER,
  clusters: { 0: DATA, 1: { kind: "zero" }, 5: DATA },
};
/** Header, L1, one L2, two clusters of data. */
const USED = 1 + 2 + 2 + 2;

function count(bytes: Uint8Array, changes: "none" | "expected" = "none"): FileAllocation {
  const storage = new MemoryStorage("disk.qed", bytes);
  return countQedAllocation(readQedLayout(storage, 0).header, storage, { changes });
}

describe("countQedAllocation", () => {
  it("counts the header, the tables and data, and takes the rest for leaked", () => {
    const { bytes } = buildQed(OPTIONS);
    expect(bytes.length).toBe(USED * CLUSTER);
    const leaked = Buffer.concat([bytes, Buffer.alloc(3 * CLUSTER + 100)]);
    expect(count(leaked)).toEqual({
      fileSize: leaked.length,
      usedData: USED * CLUSTER,
      usedZero: 0,
      usedDiscarded: 0,
      usedOverrun: 0,
      unusedData: 3 * CLUSTER + 100,
      unusedZero: 0,
      unusedDiscarded: 0,
    });
  });

  it("finds clusters that nothing refers to between those in use", () => {
    const image = buildQed(OPTIONS).setL2(0, 0);
    expect(count(image.bytes)).toMatchObject({
      usedData: (USED - 1) * CLUSTER,
      unusedData: CLUSTER,
    });
  });

  it.each([
    ["past the end of the file", 2 ** 40],
    ["not aligned", 5 * CLUSTER + 1],
    ["in the header", 0x800],
  ])("refuses an entry that is %s", (_, entry) => {
    const image = buildQed(OPTIONS).setL2(5, entry);
    const at = image.region("l2 0").offset + 5 * 8;
    expect(() => count(image.bytes)).toThrow(
      `disk.qed: the table entry at 0x${at.toString(16)} is not the offset of a place in the file`,
    );
  });

  it("refuses clusters that are used twice, unless others are changing the tables", () => {
    const image = buildQed(OPTIONS);
    image.setL2(7, image.region("data 5").offset);
    expect(() => count(image.bytes)).toThrow(
      /^disk\.qed: its tables refer to 1 clusters more than/,
    );
    expect(count(image.bytes, "expected")).toMatchObject({ usedData: USED * CLUSTER });
  });

  it("reads again what refers to a place that the file has got meanwhile", () => {
    const image = buildQed(OPTIONS);
    const { offset } = image.region("data 5");
    class GrowingFile extends MemoryStorage {
      #asked = 0;

      override currentLength(): number {
        return this.#asked++ === 0 ? offset : this.bytes.length;
      }
    }
    const storage = new GrowingFile("disk.qed", image.bytes);
    const { header } = readQedLayout(storage, 0);
    const allocation = countQedAllocation(header, storage, { changes: "expected" });
    expect(allocation).toMatchObject({ fileSize: USED * CLUSTER, usedData: USED * CLUSTER });
  });
});
