/** The marks of a session where two threads set them at once. */

import { describe, expect, it } from "vitest";
import { HeaderWriter } from "../../../../../src/formats/qcow2/writer/header-writer.ts";
import { SessionMarks } from "../../../../../src/formats/qcow2/writer/session-marks.ts";
import type { NativeBuffer } from "../../../../../src/syscalls/native-buffer.ts";
import { RecordingStorage } from "../../../../support/recording-storage.ts";
import { writerState } from "./writer-state.ts";

const INCOMPATIBLE_AT = 72;
const DIRTY = 1n;
const CORRUPT = 2n;

/** A file with which something happens between a read and what follows it. */
class InterruptedStorage extends RecordingStorage {
  afterRead: (() => void) | undefined;

  override readAt(target: NativeBuffer, start: number, length: number, offset: number): void {
    super.readAt(target, start, length, offset);
    const { afterRead } = this;
    this.afterRead = undefined;
    afterRead?.();
  }
}

describe("an image that is found corrupt while another thread sets its dirty bit", () => {
  it("has both bits", () => {
    const { state, storage, log } = writerState({ version: 3 });
    const { content, path } = storage;
    const interrupted = new InterruptedStorage(path, content, log, 0);
    const marksOn = (file: RecordingStorage): SessionMarks =>
      new SessionMarks(state, file, new HeaderWriter(file, 3));
    interrupted.afterRead = () => {
      expect(() => marksOn(storage).markCorrupt("a table is damaged")).toThrow(/damaged/);
    };
    marksOn(interrupted).markDirty();
    expect(content.bytesAt(INCOMPATIBLE_AT, 8).readBigUInt64BE()).toBe(DIRTY | CORRUPT);
  });
});
