/** Other backing files for images that exist: whatever the header has, and whenever it is stopped. */

import { describe, expect, it } from "vitest";
import { TsimgfsError } from "../../../src/errors.ts";
import type { BackingReference } from "../../../src/formats/driver.ts";
import { setBackingFile } from "../../../src/formats/formats.ts";
import {
  type BackingText,
  readQcow2Backing,
  readQedBacking,
} from "../../support/backing-reader.ts";
import { CrashStates, STRATEGIES } from "../../support/crash-states.ts";
import { buildQcow2 } from "../../support/qcow2-builder.ts";
import { featureNameTable, type Qcow2Extension } from "../../support/qcow2-header-builder.ts";
import { qedBytes } from "../../support/qed-builder.ts";
import { Random } from "../../support/random.ts";
import { SparseFile } from "../../support/recording-sparse-file.ts";
import { type RecordingLog, RecordingStorage } from "../../support/recording-storage.ts";
import { byScale } from "../../support/scale.ts";

type Format = "qcow2" | "qed";

const READERS = { qcow2: readQcow2Backing, qed: readQedBacking } as const;

/** An image, changed again and again. */
class Subject {
  readonly format: Format;
  content: SparseFile;
  /** Of the last change. */
  log: RecordingLog = { operations: [] };

  constructor(format: Format, bytes: Buffer) {
    this.format = format;
    this.content = SparseFile.empty();
    this.content.write(0, bytes);
  }

  read(content = this.content): BackingText {
    return READERS[this.format](content.bytesAt(0, content.length));
  }

  bytes(): Buffer {
    return this.content.bytesAt(0, this.content.length);
  }

  set(backing: BackingReference | undefined): void {
    this.log = { operations: [] };
    const storage = new RecordingStorage(`disk.${this.format}`, this.content, this.log, 0);
    setBackingFile(this.format, storage, backing);
  }

  writesTo(sector: number): number {
    return this.log.operations.filter(
      (operation) =>
        operation.kind === "write" &&
        operation.offset < (sector + 1) * 512 &&
        operation.offset + operation.data.length > sector * 512,
    ).length;
  }
}

/** As the readers say it; QED can only say "raw". */
function textOf(format: Format, backing: BackingReference | undefined): string {
  if (backing === undefined) return "none";
  const isSaid = format === "qcow2" ? backing.format !== undefined : backing.format === "raw";
  return `${backing.name} (${isSaid ? backing.format : "unknown"})`;
}

/** Sets the backing file, and looks at what a crash at any moment leaves. */
function expectAtomic(
  subject: Subject,
  backing: BackingReference | undefined,
  random: Random,
): void {
  const initial = subject.content.clone();
  const before = subject.read();
  subject.set(backing);
  const wanted = textOf(subject.format, backing);
  expect(subject.read()).toEqual({ backing: wanted, rest: before.rest });
  const states = new CrashStates([initial], subject.log);
  const { operations } = subject.log;
  if (operations.length > 0) expect(operations.at(-1)?.kind).toBe("sync");
  const expectOldOrNew = (files: readonly SparseFile[]): void => {
    const { backing: found, rest } = subject.read(files[0]);
    expect([before.backing, wanted]).toContain(found);
    expect(rest).toBe(before.rest);
  };
  for (let position = 0; position <= operations.length; position++) {
    expectOldOrNew(states.prefix(position));
    for (const strategy of STRATEGIES) expectOldOrNew(states.random(position, strategy, random));
  }
  // A finished change is durable.
  const [durable] = states.random(operations.length, "operations", random);
  expect(subject.read(durable).backing).toBe(wanted);
}

const NAME_LENGTHS = [1, 2, 7, 8, 9, 40, 300, 376, 400, 1022, 1023] as const;

function randomBacking(random: Random, nameMax: number): BackingReference | undefined {
  if (random.below(5) === 0) return undefined;
  const length = Math.min(random.pick(NAME_LENGTHS), nameMax);
  return {
    name: random.text(length).toString(),
    format: random.pick([undefined, "raw", "qcow2", "qed", "vmdk", "fifteen-letters"]),
  };
}

function randomExtensions(random: Random, bytes: number): Qcow2Extension[] {
  const extensions: Qcow2Extension[] = [];
  let left = bytes;
  while (random.below(3) > 0) {
    const length = random.below(Math.min(700, Math.max(1, left - 16)));
    left -= length + 16;
    if (left < 0) break;
    extensions.push({ type: 0x1234_0000 + random.below(100), data: random.bytes(length) });
    const rows = random.below(8);
    left -= rows * 48 + 8;
    if (left < 0) break;
    const row = { kind: 0, bit: 5, name: "something" };
    extensions.push(featureNameTable(Array.from({ length: rows }, () => row)));
  }
  return extensions;
}

function randomQcow2(random: Random): Subject {
  const clusterBits = random.pick([9, 10, 11, 12, 16]);
  const clusterSize = 2 ** clusterBits;
  const version = random.pick<2 | 3>([2, 3, 3]);
  const headerLength = version === 2 ? undefined : random.pick([104, 112, 112, 120, 248]);
  const backing = randomBacking(random, Math.floor(clusterSize / 3));
  const room = clusterSize - (headerLength ?? 72) - (backing?.name.length ?? 0) - 64;
  const image = buildQcow2({
    version,
    clusterBits,
    headerLength,
    backingFile: backing?.name,
    backingFormat: backing?.format,
    extensions: randomExtensions(random, room),
    endMarker: backing !== undefined && random.below(4) === 0 ? "missing" : "written",
    clusters: { 0: { kind: "data", bytes: random.bytes(100) } },
    header: { crypt_method: 0 },
  });
  return new Subject("qcow2", image.bytes);
}

describe("setBackingFile of qcow2", () => {
  it("has the old or the new name at any moment, and keeps all else", () => {
    const random = new Random("backing names");
    const done = { changed: 0, refused: 0, moved: 0 };
    for (let round = 0; round < byScale(60, 2000); round++) {
      const subject = randomQcow2(random);
      for (let step = 0; step < 4; step++) {
        const before = subject.bytes();
        try {
          expectAtomic(subject, randomBacking(random, 1023), random);
          done.changed++;
          if (subject.writesTo(0) > 1) done.moved++;
        } catch (error) {
          if (!(error instanceof TsimgfsError)) throw error;
          expect(error.message).toMatch(/^disk\.qcow2: its first cluster of \d+ bytes has no room/);
          expect(error.code).toBe("ENOSPC");
          expect(subject.bytes().equals(before)).toBe(true);
          done.refused++;
        }
      }
    }
    expect(done.changed).toBeGreaterThan(done.refused);
    expect(done.refused).toBeGreaterThan(0);
    expect(done.moved).toBeGreaterThan(0);
  });

  it("always finds room in clusters of 8 KiB and more, with the extensions of QEMU", () => {
    const random = new Random("backing room");
    const names = { type: 0x6803_f857, data: random.bytes(48 * 8) };
    const subject = new Subject(
      "qcow2",
      buildQcow2({ clusterBits: 13, extensions: [names, { type: 0x1234, data: "x" }] }).bytes,
    );
    for (let step = 0; step < byScale(30, 300); step++) {
      expectAtomic(subject, randomBacking(random, 1023), random);
    }
  });

  it("writes once to the first sector, in the headers that QEMU writes", () => {
    const names = { type: 0x6803_f857, data: Buffer.alloc(48 * 8) };
    const subject = new Subject(
      "qcow2",
      buildQcow2({ backingFile: "base.raw", backingFormat: "raw", extensions: [names] }).bytes,
    );
    const steps: (BackingReference | undefined)[] = [
      { name: "other.qcow2", format: "qcow2" },
      { name: "other.qcow2", format: "raw" },
      undefined,
      { name: "third.raw", format: "raw" },
    ];
    for (const backing of steps) {
      subject.set(backing);
      expect(subject.writesTo(0)).toBe(1);
      const switches = subject.log.operations.flatMap((operation) =>
        operation.kind === "write" && operation.offset < 512
          ? [`${operation.offset}+${operation.data.length}`]
          : [],
      );
      expect(switches).toEqual(["0+512"]);
    }
  });

  it("clears autoclear bits that nobody here knows, with the same write", () => {
    const image = buildQcow2({ header: { autoclear_features: 0xffff_fffdn } });
    const subject = new Subject("qcow2", image.bytes);
    subject.set({ name: "base.raw", format: "raw" });
    expect(subject.bytes().readBigUInt64BE(88)).toBe(1n);
    expect(subject.writesTo(0)).toBe(1);
  });

  it("refuses a backing file where the data file alone is the disk", () => {
    const image = buildQcow2({ dataFile: "data.raw", header: { autoclear_features: 2n } });
    const subject = new Subject("qcow2", image.bytes);
    expect(() => subject.set({ name: "base.raw", format: "raw" })).toThrow(/data_file_raw/);
    expect(subject.bytes().equals(image.bytes)).toBe(true);
    subject.set(undefined);
    expect(subject.bytes().equals(image.bytes)).toBe(true);
  });

  it.each([
    [{ name: "b".repeat(1024), format: "raw" }, /name has 1024 bytes, and must have 1 to 1023/],
    [{ name: "ä".repeat(512), format: "raw" }, /name has 1024 bytes/],
    [{ name: "", format: "raw" }, /name has 0 bytes/],
    [{ name: "a\0b", format: "raw" }, /none of them zero/],
    [{ name: "base.raw", format: "x".repeat(16) }, /format has 16 bytes, and must have 1 to 15/],
  ])("refuses what qcow2 cannot say: %#", (backing, reason) => {
    const { bytes } = buildQcow2();
    const subject = new Subject("qcow2", bytes);
    expect(() => subject.set(backing)).toThrow(reason);
    expect(subject.bytes().equals(bytes)).toBe(true);
  });
});

function randomQed(random: Random): Subject {
  const clusterSize = random.pick([4096, 8192, 65536]);
  const backing = randomBacking(random, 1000);
  const bytes = qedBytes({
    clusterSize,
    headerClusters: random.pick([1, 1, 2, 8]),
    backingFile: backing?.name,
    backingFormat: backing?.format === "raw" ? "raw" : "probed",
    features: random.pick([0, 2]),
    virtualSize: 2 ** 20,
  });
  return new Subject("qed", bytes);
}

describe("setBackingFile of QED", () => {
  it("has the old or the new name at any moment, and keeps all else", () => {
    const random = new Random("QED backing names");
    for (let round = 0; round < byScale(30, 1000); round++) {
      const subject = randomQed(random);
      for (let step = 0; step < 4; step++) {
        expectAtomic(subject, randomBacking(random, 1023), random);
        expect(subject.writesTo(0)).toBeLessThanOrEqual(1);
      }
    }
  });

  it("takes names as long as there is room, and says where it ends", () => {
    const subject = new Subject("qed", qedBytes({ clusterSize: 4096 }));
    const set = (length: number): void => subject.set({ name: "n".repeat(length), format: "raw" });
    set(4032);
    expect(subject.read().backing).toBe(`${"n".repeat(4032)} (raw)`);
    const before = subject.bytes();
    expect(() => subject.set({ name: "m".repeat(449), format: "raw" })).toThrow(/no room/);
    expect(subject.bytes().equals(before)).toBe(true);
    subject.set({ name: "m".repeat(448), format: undefined });
    set(3584);
    expect(subject.read().backing).toBe(`${"n".repeat(3584)} (raw)`);
    expect(() => set(4096)).toThrow(/name has 4096 bytes, and must have 1 to 4095/);
    expect(() => set(4095)).toThrow(/no room/);
    expect(() => set(0)).toThrow(/name has 0 bytes/);
  });

  it("refuses where unknown features may have data, as QEMU, but forgets a name", () => {
    const bytes = qedBytes({ backingFile: "base.raw", header: { compat_features: 4n } });
    const subject = new Subject("qed", bytes);
    expect(() => subject.set({ name: "other", format: "raw" })).toThrow(/compatible features/);
    expect(subject.bytes().equals(bytes)).toBe(true);
    subject.set(undefined);
    expect(subject.read().backing).toBe("none");
    expect(subject.bytes().readBigUInt64LE(24)).toBe(4n);
  });

  it("clears autoclear bits that nobody here knows, with the same write", () => {
    const subject = new Subject("qed", qedBytes({ header: { autoclear_features: -1 } }));
    subject.set({ name: "base.raw", format: "raw" });
    expect(subject.bytes().readBigUInt64LE(32)).toBe(0n);
    expect(subject.writesTo(0)).toBe(1);
  });
});

describe("setBackingFile", () => {
  it.each(["qcow2", "qed"] as const)(
    "changes no byte if nothing changes, and makes the header durable: %s",
    (format) => {
      const backing = { name: "base.raw", format: "raw" };
      const options = { backingFile: "base.raw", backingFormat: "raw" } as const;
      const bytes = format === "qcow2" ? buildQcow2(options).bytes : qedBytes(options);
      const subject = new Subject(format, bytes);
      const expectSame = (before: Buffer): void => {
        expect(subject.bytes().equals(before)).toBe(true);
        const [write, sync] = subject.log.operations.slice(-2);
        expect(write).toMatchObject({ kind: "write", offset: 0 });
        expect(sync?.kind).toBe("sync");
      };
      subject.set(backing);
      expectSame(bytes);
      subject.set({ ...backing, format: undefined });
      expect(subject.bytes().equals(bytes)).toBe(false);
      subject.set(undefined);
      const without = subject.bytes();
      subject.set(undefined);
      expectSame(without);
    },
  );

  it("of raw images has nothing to forget, and takes no name", () => {
    const log: RecordingLog = { operations: [] };
    const storage = new RecordingStorage("disk.raw", SparseFile.empty(512), log, 0);
    setBackingFile("raw", storage, undefined);
    const backing = { name: "base.raw", format: "raw" };
    expect(() => setBackingFile("raw", storage, backing)).toThrow(
      "disk.raw: raw images have no backing files",
    );
    expect(log.operations).toEqual([]);
  });
});
