// The fsx program: random operations on a range of a device, each checked against a model in memory.
// Run as a process of its own with a plan (fsx-plan.ts) in a file; several may share a device.

import fs from "node:fs";
import { type Change, FsxDevice } from "./fsx-operations.ts";
import { FSX_STARTED, type FsxPlan, type FsxReport } from "./fsx-plan.ts";
import { RangeModel } from "./fsx-range.ts";
import { Random } from "./random.ts";

/** What operations on a device give whose daemon was killed. */
const GONE = ["ENOTCONN", "ECONNABORTED"];

/** How many operations a failure tells of. */
const HISTORY_LENGTH = 40;

function codeOf(error: unknown): string {
  return error instanceof Error && "code" in error ? String(error.code) : "";
}

/**
 * Whether an operation failed because the daemon was killed. A request that it was just reading ends
 * with EIO, a moment before the device is gone.
 */
function isGone(error: unknown, device: string): boolean {
  if (GONE.includes(codeOf(error))) {
    return true;
  }
  for (let tries = 0; codeOf(error) === "EIO" && tries < 1000; tries++) {
    try {
      fs.closeSync(fs.openSync(device, "r"));
    } catch (next) {
      return GONE.includes(codeOf(next));
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
  }
  return false;
}

class Fsx {
  readonly #plan: FsxPlan;
  readonly #random: Random;
  readonly #device: FsxDevice;
  readonly #history: string[] = [];
  #operations = 0;
  #failures = 0;
  /** The change that is under way: of it nothing is certain. */
  #current: Change | undefined;

  constructor(plan: FsxPlan) {
    this.#plan = plan;
    this.#random = new Random("fsx", plan.seed);
    const bytes = Buffer.alloc(plan.length);
    const file = fs.openSync(plan.expected, "r");
    fs.readSync(file, bytes, 0, plan.length, plan.start);
    fs.closeSync(file);
    this.#device = new FsxDevice(plan, this.#random, new RangeModel(plan.start, bytes));
  }

  #note(text: string): void {
    this.#history.push(`${this.#operations}: ${text}`);
    if (this.#history.length > HISTORY_LENGTH) {
      this.#history.shift();
    }
  }

  #change(change: Change): void {
    this.#note(change.text);
    this.#current = change;
    try {
      change.carryOut();
      this.#device.model.write(change.offset, change.after);
    } catch (error) {
      if (!this.#plan.tolerated.includes(codeOf(error))) {
        throw error;
      }
      this.#failures++;
      this.#note(`… ended with ${codeOf(error)}`);
      const actual = this.#device.readBytes(change);
      this.#device.model.adopt(change.offset, change.after, actual, change.text);
    }
    this.#current = undefined;
  }

  #sync(text: string, sync: () => void): void {
    this.#note(text);
    try {
      sync();
    } catch (error) {
      if (!this.#plan.tolerated.includes(codeOf(error))) {
        throw error;
      }
      this.#failures++;
    }
  }

  /** An operation of a hundred. */
  #operate(draw: number): void {
    const device = this.#device;
    if (draw < 40 || (draw < 60 && !this.#plan.fallocate)) this.#change(device.pickWrite());
    else if (draw < 50) this.#change(device.pickFallocate("punch"));
    else if (draw < 58) this.#change(device.pickFallocate("zero"));
    else if (draw < 60) this.#change(device.pickFallocate("allocate"));
    else if (draw < 78) this.#note(device.read());
    else if (draw < 82) this.#sync("fsync", () => device.sync());
    else if (draw < 84) this.#sync("fdatasync", () => device.dataSync());
    else if (draw < 87) this.#sync("close and open", () => device.reopen());
    else if (draw < 91) this.#note(device.hole());
    else if (!this.#plan.mappings) this.#change(device.pickWrite());
    else if (draw < 97) this.#note(device.mapRead());
    else this.#change(device.pickMapWrite());
  }

  #isOver(): boolean {
    return this.#plan.end !== "until-gone" && this.#operations >= this.#plan.end.operations;
  }

  #operateAll(): void {
    while (!this.#isOver()) {
      this.#operate(this.#random.below(100));
      this.#operations++;
    }
    this.#device.readAll();
    this.#device.close();
  }

  run(): FsxReport {
    const { device, expected, attempted, end } = this.#plan;
    try {
      this.#operateAll();
    } catch (error) {
      if (end !== "until-gone" || !isGone(error, device)) {
        throw new Error([...this.#history, String(error)].join("\n"), { cause: error });
      }
      this.#writeModel(expected);
      if (this.#current !== undefined) {
        this.#device.model.write(this.#current.offset, this.#current.after);
      }
      this.#writeModel(attempted);
      return { operations: this.#operations, failures: this.#failures };
    }
    this.#writeModel(expected);
    return { operations: this.#operations, failures: this.#failures };
  }

  #writeModel(path: string): void {
    const file = fs.openSync(path, "r+");
    fs.writeSync(file, this.#device.model.bytes, 0, this.#plan.length, this.#plan.start);
    fs.closeSync(file);
  }
}

const plan: FsxPlan = JSON.parse(fs.readFileSync(process.argv[2] ?? "", "utf8"));
const fsx = new Fsx(plan);
fs.writeSync(1, `${FSX_STARTED}\n`);
try {
  fs.writeSync(1, `${JSON.stringify(fsx.run())}\n`);
} catch (error) {
  fs.writeSync(2, `${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
