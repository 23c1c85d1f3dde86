/** What a disk may contain when some of the changes that were asked for have failed. */

import { expect } from "vitest";
import { TsimgfsError } from "../../../src/errors.ts";
import type { WritableDisk } from "./writable-disk.ts";

/** One change of a disk, or nothing but work. */
export type FaultStep =
  | { readonly kind: "write"; readonly offset: number; readonly bytes: Uint8Array }
  | {
      readonly kind: "zero";
      readonly offset: number;
      readonly length: number;
      readonly unmap: boolean;
    }
  | { readonly kind: "preallocate"; readonly offset: number; readonly length: number }
  | { readonly kind: "resize"; readonly size: number }
  | { readonly kind: "flush" }
  | { readonly kind: "maintain" };

export class FaultModel {
  /** What the disk contains after all changes that were acknowledged. */
  content: Buffer;
  /** Sizes that it may have instead. */
  readonly sizes = new Set<number>();
  /** Other values of bytes, by their offset: of changes that failed. */
  readonly #others = new Map<number, Set<number>>();

  constructor(content: Uint8Array) {
    this.content = Buffer.from(content);
  }

  /** Makes a change, and notes what it did; returns whether it was acknowledged. */
  step(disk: WritableDisk, step: FaultStep): boolean {
    let isDone = true;
    try {
      apply(disk, step);
    } catch (error) {
      if (!(error instanceof TsimgfsError)) throw error;
      isDone = false;
    }
    switch (step.kind) {
      case "write":
        this.#change(step.offset, step.bytes, isDone);
        break;
      case "zero":
        this.#change(step.offset, Buffer.alloc(step.length), isDone);
        break;
      case "resize":
        this.#resize(step.size, isDone);
        break;
      default:
        break;
    }
    return isDone;
  }

  /** Fails unless a disk contains what it must, and nothing that it must not. */
  expectAllowed(disk: Buffer, what: string): void {
    if (!this.sizes.has(disk.length)) expect(disk.length, what).toBe(this.content.length);
    const length = Math.max(disk.length, this.content.length);
    for (let at = 0; at < Math.min(disk.length, length); at++) {
      const value = disk[at] ?? 0;
      // What another size adds is zeros.
      if (value === (this.content[at] ?? 0) || this.#others.get(at)?.has(value) === true) continue;
      expect.fail(`${what}: byte ${at} is ${value}, acknowledged was ${this.content[at]}`);
    }
  }

  #change(offset: number, bytes: Uint8Array, isDone: boolean): void {
    const end = Math.min(offset + bytes.length, this.content.length);
    for (let at = offset; at < end; at++) {
      const value = bytes[at - offset] ?? 0;
      if (isDone) {
        this.content[at] = value;
        this.#others.delete(at);
        continue;
      }
      const others = this.#others.get(at);
      if (others === undefined) this.#others.set(at, new Set([value]));
      else others.add(value);
    }
  }

  #resize(size: number, isDone: boolean): void {
    const resized = Buffer.alloc(size);
    this.content.copy(resized);
    if (isDone) {
      for (const at of this.#others.keys()) if (at >= size) this.#others.delete(at);
      this.content = resized;
      this.sizes.clear();
      return;
    }
    this.sizes.add(size);
    // What would have been cut off may be zeros by now.
    this.#change(size, Buffer.alloc(Math.max(0, this.content.length - size)), false);
  }
}

function apply(writable: WritableDisk, step: FaultStep): void {
  const { disk } = writable;
  switch (step.kind) {
    case "write":
      writable.write(step.offset, step.bytes);
      break;
    case "zero":
      disk.writeZeroes(step.offset, step.length, { unmap: step.unmap });
      break;
    case "preallocate":
      disk.preallocate(step.offset, step.length);
      break;
    case "resize":
      disk.resize(step.size);
      break;
    case "flush":
      disk.flush();
      break;
    case "maintain":
      disk.maintain();
      break;
  }
}
