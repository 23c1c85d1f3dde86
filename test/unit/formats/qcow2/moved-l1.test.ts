/** Reading an image again whose file has become longer since it was opened. */

import { expect, it } from "vitest";
import { readQcow2Layout } from "../../../../src/formats/qcow2/layout.ts";
import { buildQcow2 } from "../../../support/qcow2-builder.ts";
import { SparseFile } from "../../../support/recording-sparse-file.ts";
import { RecordingStorage } from "../../../support/recording-storage.ts";

it("finds an L1 table that was moved behind what was the end of the file", () => {
  const image = buildQcow2({ virtualSize: 2 ** 20 });
  const content = SparseFile.empty();
  content.write(0, image.bytes);
  const storage = new RecordingStorage("disk.qcow2", content, { operations: [] }, 0);
  const moved = Math.ceil(image.bytes.length / 65536) * 65536 + 65536;
  content.setLength(moved + 65536);
  content.write(0, image.setHeader("l1_table_offset", moved).bytes);
  const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: false });
  expect(layout.header.l1_table_offset).toBe(moved);
});
