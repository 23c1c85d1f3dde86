/** The state that the writers of a qcow2 image share, for tests of one part of a writer. */

import type { Qcow2Layout } from "../../../../../src/formats/qcow2/layout.ts";
import { readQcow2Layout } from "../../../../../src/formats/qcow2/layout.ts";
import {
  createSharedState,
  SharedState,
} from "../../../../../src/formats/qcow2/writer/shared-state.ts";
import {
  buildQcow2,
  type Qcow2Image,
  type Qcow2Options,
} from "../../../../support/qcow2-builder.ts";
import { SparseFile } from "../../../../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../../../../support/recording-storage.ts";

export interface WriterState {
  readonly built: Qcow2Image;
  readonly layout: Qcow2Layout;
  readonly storage: RecordingStorage;
  /** Every change of the file. */
  readonly log: RecordingLog;
  readonly state: SharedState;
}

/** An image that is laid out by hand, in memory, as the writers find it after it was opened. */
export function writerState(options: Qcow2Options = {}): WriterState {
  const built = buildQcow2(options);
  const content = SparseFile.empty();
  content.write(0, built.bytes);
  const log: RecordingLog = { operations: [] };
  const storage = new RecordingStorage("disk.qcow2", content, log, 0);
  const layout = readQcow2Layout(storage, { tableCacheMax: 0, keepsL1: true });
  const state = new SharedState(createSharedState(layout.header, layout.virtualSize));
  return { built, layout, storage, log, state };
}
