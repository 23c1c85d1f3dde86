// The operations of the fsx program: each is drawn at random, done to the device, and checked against the model.

import fs from "node:fs";
import type { FsxPlan } from "./fsx-plan.ts";
import { Contradiction, type RangeModel } from "./fsx-range.ts";
import { adviseRandom, fallocate, mapRead, mapWrite, seek } from "./fsx-syscalls.ts";
import type { Random } from "./random.ts";

interface Range {
  readonly offset: number;
  readonly length: number;
}

/** A change of the device: what it does, and how. */
export interface Change extends Range {
  readonly text: string;
  /** What the range contains afterwards. */
  readonly after: Buffer;
  /** Does it; what is certain before the end is noted in the model at once. */
  readonly carryOut: () => void;
}

/** The device, open, with its model. */
export class FsxDevice {
  readonly #plan: FsxPlan;
  readonly #random: Random;
  readonly model: RangeModel;
  #fd: number;
  #isDirect = false;

  constructor(plan: FsxPlan, random: Random, model: RangeModel) {
    this.#plan = plan;
    this.#random = random;
    this.model = model;
    this.#fd = this.#open();
  }

  #open(): number {
    const { access, device } = this.#plan;
    this.#isDirect = access === "direct" || (access === "mixed" && this.#random.below(2) === 0);
    const { O_RDWR, O_DIRECT, O_DSYNC, O_SYNC } = fs.constants;
    const sync = this.#random.below(16) === 0 ? this.#random.pick([O_DSYNC, O_SYNC]) : 0;
    const fd = fs.openSync(device, O_RDWR | sync | (this.#isDirect ? O_DIRECT : 0));
    if (access === "mixed") {
      adviseRandom(fd);
    }
    return fd;
  }

  close(): void {
    fs.closeSync(this.#fd);
  }

  reopen(): void {
    this.close();
    this.#fd = this.#open();
  }

  sync(): void {
    fs.fsyncSync(this.#fd);
  }

  dataSync(): void {
    fs.fdatasyncSync(this.#fd);
  }

  /** A range that begins or ends near a multiple of the unit as often as anywhere. */
  #pickRange(most: number): Range {
    const random = this.#random;
    const { start, length, unit } = this.#plan;
    const near = (): number =>
      start +
      random.below(Math.max(1, Math.floor(length / unit))) * unit +
      random.pick([0, 0, 0, -1, 1, -512, 512, 4096, random.below(unit)]);
    const wanted = random.below(3) === 0 ? start + random.below(length) : near();
    const offset = Math.min(Math.max(start, wanted), start + length - 1);
    const size = random.pick([
      random.between(1, 600),
      random.between(1, most),
      random.between(1, 5) * 4096,
      random.between(1, 3) * unit,
    ]);
    return { offset, length: Math.max(1, Math.min(size, most, start + length - offset)) };
  }

  /** Bytes to write: noise, zeros, zeros with a little in them, or what is there already. */
  #pickBytes({ offset, length }: Range): Buffer {
    const random = this.#random;
    switch (random.below(8)) {
      case 0:
      case 1:
        return Buffer.alloc(length);
      case 2: {
        const bytes = Buffer.alloc(length);
        bytes[random.below(length)] = 1 + random.below(255);
        return bytes;
      }
      case 3:
        return Buffer.from(this.model.part(offset, length));
      default:
        return random.bytes(length);
    }
  }

  #writeAll(range: Range, bytes: Buffer): void {
    let done = 0;
    while (done < range.length) {
      const count = fs.writeSync(this.#fd, bytes, done, range.length - done, range.offset + done);
      this.model.write(range.offset + done, bytes.subarray(done, done + count));
      done += count;
    }
  }

  pickWrite(): Change {
    const range = this.#pickRange(this.#plan.maxLength);
    const after = this.#pickBytes(range);
    const how = this.#isDirect ? "direct write" : "write";
    return {
      ...range,
      after,
      text: `${how} ${range.offset}+${range.length}`,
      carryOut: () => this.#writeAll(range, after),
    };
  }

  pickMapWrite(): Change {
    const range = this.#pickRange(Math.min(65536, this.#plan.maxLength));
    const after = this.#pickBytes(range);
    return {
      ...range,
      after,
      text: `write through mmap ${range.offset}+${range.length}`,
      carryOut: () => this.#throughCache((fd) => mapWrite(fd, after, range.offset)),
    };
  }

  pickFallocate(mode: "punch" | "zero" | "allocate"): Change {
    const range = this.#pickRange(this.#plan.maxLength * 4);
    return {
      ...range,
      after:
        mode === "allocate"
          ? Buffer.from(this.model.part(range.offset, range.length))
          : Buffer.alloc(range.length),
      text: `fallocate ${mode} ${range.offset}+${range.length}`,
      carryOut: () => fallocate(this.#fd, mode, range.offset, range.length),
    };
  }

  readBytes({ offset, length }: Range): Buffer {
    const bytes = Buffer.alloc(length);
    let done = 0;
    while (done < length) {
      const count = fs.readSync(this.#fd, bytes, done, length - done, offset + done);
      if (count === 0) {
        throw new Contradiction(`read at ${offset + done}: end of file inside the device`);
      }
      done += count;
    }
    return bytes;
  }

  read(): string {
    const range = this.#pickRange(this.#plan.maxLength);
    const how = this.#isDirect ? "direct read" : "read";
    this.model.expect(range.offset, this.readBytes(range), how);
    return `${how} ${range.offset}+${range.length}`;
  }

  readAll(): void {
    const { start, length } = this.#plan;
    this.model.expect(start, this.readBytes({ offset: start, length }), "read of all");
  }

  /** Mappings see the page cache: with O_DIRECT they are for another descriptor. */
  #throughCache(body: (fd: number) => void): void {
    if (!this.#isDirect) {
      body(this.#fd);
      return;
    }
    const fd = fs.openSync(this.#plan.device, fs.constants.O_RDWR);
    try {
      adviseRandom(fd);
      body(fd);
    } finally {
      fs.closeSync(fd);
    }
  }

  mapRead(): string {
    const { offset, length } = this.#pickRange(this.#plan.maxLength);
    const bytes = Buffer.alloc(length);
    this.#throughCache((fd) => mapRead(fd, bytes, offset));
    this.model.expect(offset, bytes, "mmap");
    return `read through mmap ${offset}+${length}`;
  }

  /** What lseek(2) calls a hole must be zeros. */
  hole(): string {
    const { start, length } = this.#plan;
    const end = start + length;
    const from = start + this.#random.below(length);
    const hole = seek(this.#fd, from, "hole") ?? end;
    if (hole < end) {
      const data = Math.min(end, seek(this.#fd, hole, "data") ?? end);
      this.model.expect(hole, Buffer.alloc(Math.max(0, data - hole)), "hole by lseek");
    }
    return `lseek ${from}`;
  }
}
