/** Files that were opened with O_TRUNC: what their writers skip becomes zeros, and nothing else does. */

import { describe, expect, it } from "vitest";
import {
  createTruncatedFiles,
  PLAIN_HANDLE,
  TruncatedFiles,
} from "../../../src/tree/truncated-files.ts";
import { Random } from "../../support/random.ts";

/** The zeroed ranges of an action. */
function zeroedBy(action: (zero: (offset: number, length: number) => void) => void): number[][] {
  const ranges: number[][] = [];
  action((offset, length) => ranges.push([offset, length]));
  return ranges;
}

describe("TruncatedFiles", () => {
  it("zero what is skipped, once, and nothing that was written", () => {
    const files = new TruncatedFiles(createTruncatedFiles(1), 0);
    const handle = files.open();
    expect(handle).not.toBe(PLAIN_HANDLE);
    const ranges = zeroedBy((zero) => {
      files.advance(handle, 0, 100, zero);
      files.advance(handle, 100, 200, zero);
      files.advance(handle, 500, 600, zero);
      files.advance(handle, 300, 400, zero);
      files.advance(handle, 550, 700, zero);
      files.advance(handle, 1000, 1000, zero);
      files.advance(handle, 1000, 1001, zero);
    });
    expect(ranges).toEqual([
      [200, 300],
      [700, 300],
    ]);
  });

  it("start at the beginning of the device", () => {
    const files = new TruncatedFiles(createTruncatedFiles(1), 0);
    const handle = files.open();
    expect(zeroedBy((zero) => files.advance(handle, 4096, 8192, zero))).toEqual([[0, 4096]]);
  });

  it("start anew when a handle is used again", () => {
    const files = new TruncatedFiles(createTruncatedFiles(1), 0);
    const first = files.open();
    zeroedBy((zero) => files.advance(first, 0, 5000, zero));
    files.release(first);
    const second = files.open();
    expect(second).toBe(first);
    expect(zeroedBy((zero) => files.advance(second, 10, 20, zero))).toEqual([[0, 10]]);
  });

  it("are kept apart, and other files are not kept at all", () => {
    const files = new TruncatedFiles(createTruncatedFiles(1), 0);
    const [one, other] = [files.open(), files.open()];
    expect(one).not.toBe(other);
    const ranges = zeroedBy((zero) => {
      files.advance(one, 0, 100, zero);
      files.advance(other, 50, 60, zero);
      files.advance(PLAIN_HANDLE, 1000, 2000, zero);
      files.advance(one, 100, 110, zero);
    });
    expect(ranges).toEqual([[0, 50]]);
    files.release(PLAIN_HANDLE);
    files.release(one);
    expect(files.open()).toBe(one);
  });

  it("are shared by all threads and devices", () => {
    const memory = createTruncatedFiles(2);
    const [one, sameDevice, otherDevice] = [
      new TruncatedFiles(memory, 0),
      new TruncatedFiles(memory, 0),
      new TruncatedFiles(memory, 1),
    ];
    const handle = one.open();
    expect(otherDevice.open()).not.toBe(handle);
    zeroedBy((zero) => one.advance(handle, 0, 300, zero));
    expect(zeroedBy((zero) => sameDevice.advance(handle, 400, 500, zero))).toEqual([[300, 100]]);
  });

  it("tell once that the kernel may have cached what was zeroed, of each device", () => {
    const memory = createTruncatedFiles(2);
    const [files, otherDevice] = [new TruncatedFiles(memory, 0), new TruncatedFiles(memory, 1)];
    const handle = files.open();
    zeroedBy((zero) => files.advance(handle, 0, 100, zero));
    expect(files.takeStale()).toBe(false);
    zeroedBy((zero) => files.advance(handle, 200, 300, zero));
    expect(otherDevice.takeStale()).toBe(false);
    expect(files.takeStale()).toBe(true);
    expect(files.takeStale()).toBe(false);
  });

  it("are so many; one more is a plain file, until another one ends", () => {
    const files = new TruncatedFiles(createTruncatedFiles(3), 2);
    const handles: number[] = [];
    for (let handle = files.open(); handle !== PLAIN_HANDLE; handle = files.open()) {
      handles.push(handle);
    }
    expect(new Set(handles).size).toBe(handles.length);
    expect(handles.length).toBeGreaterThanOrEqual(64);
    const [released = 0] = handles.slice(-1);
    files.release(released);
    expect(files.open()).toBe(released);
  });

  it("are not left locked by zeroing that fails", () => {
    const files = new TruncatedFiles(createTruncatedFiles(1), 0);
    const handle = files.open();
    const failing = (): void =>
      files.advance(handle, 100, 200, () => {
        throw new Error("no space");
      });
    expect(failing).toThrow("no space");
    // It was not zeroed: the next one does it.
    expect(zeroedBy((zero) => files.advance(handle, 100, 200, zero))).toEqual([[0, 100]]);
  });

  it("leave what a file with holes in it leaves, in whatever order it is written", () => {
    const random = new Random("truncated files");
    for (let round = 0; round < 50; round++) {
      const files = new TruncatedFiles(createTruncatedFiles(1), 0);
      const handle = files.open();
      const device = Buffer.alloc(4000, 0xff);
      const expected = Buffer.alloc(4000);
      let end = 0;
      for (let count = random.between(1, 12); count > 0; count--) {
        const start = random.below(4000);
        const length = random.between(1, Math.min(500, 4000 - start));
        files.advance(handle, start, start + length, (offset, zeros) => {
          device.fill(0, offset, offset + zeros);
        });
        device.fill(count, start, start + length);
        expected.fill(count, start, start + length);
        end = Math.max(end, start + length);
      }
      // Behind the last write all stays.
      expected.fill(0xff, end);
      expect(device.equals(expected)).toBe(true);
    }
  });
});
