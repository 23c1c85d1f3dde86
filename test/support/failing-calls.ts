/** Ways in which the calls of recorded work fail, each call in turn: for want of space, or since the medium is broken. */

import { StorageError, TsimgfsError } from "../../src/errors.ts";
import type { ImageRecipe } from "./crash-recipes.ts";
import type { Random } from "./random.ts";
import type { SparseFile } from "./recording-sparse-file.ts";
import type { FaultHook, LoggedOperation } from "./recording-storage.ts";

/** What a host writes as a whole or not at all, bytes. */
const SECTOR_SIZE = 512;

/** An image whose calls fail. */
export interface FailingWorld {
  readonly directory: string;
  readonly recipe: ImageRecipe;
  readonly path: string;
  readonly initial: SparseFile;
}

/** Do what may fail; returns the error, if it is one of ours. */
export function tolerate(action: () => void): unknown {
  try {
    action();
    return undefined;
  } catch (error) {
    if (!(error instanceof TsimgfsError)) throw error;
    return error;
  }
}

export interface Failure {
  readonly name: string;
  /** Lets calls fail from the `first`th on, counted from 0. */
  hookFor(first: number): FaultHook;
}

/** Bytes of a write that are there when it fails half way: whole sectors. */
function half(operation: LoggedOperation): number {
  if (operation.kind !== "write") return 0;
  const end = operation.offset + operation.data.length / 2;
  return Math.max(0, end - (end % SECTOR_SIZE) - operation.offset);
}

const ONCE: Failure = {
  name: "one call, without space, or one sync",
  hookFor: (first) => {
    let calls = 0;
    return ({ kind }) => {
      if (calls++ !== first) return undefined;
      return { code: kind === "sync" ? "EIO" : "ENOSPC", written: 0 };
    };
  },
};

const FULL: Failure = {
  name: "all from then on but syncs, without space, half done",
  hookFor: (first) => {
    let calls = 0;
    return (operation) => {
      if (calls++ < first || operation.kind === "sync") return undefined;
      return { code: "ENOSPC", written: half(operation) };
    };
  },
};

const BROKEN: Failure = {
  name: "all from then on",
  hookFor: (first) => {
    let calls = 0;
    return () => (calls++ < first ? undefined : { code: "EIO", written: 0 });
  },
};

export const FAILURES: readonly Failure[] = [ONCE, FULL, BROKEN];

/** Which of the calls of some work are looked at. */
export interface CallChoice {
  /** How many the work makes when none fails. */
  readonly calls: number;
  /** Those before it always work; default: none does. */
  readonly start?: number;
  readonly cases: number;
  readonly random: Random;
}

/**
 * Runs `work` with some of its calls failing, each in turn and in all ways.
 *
 * @param work makes what it works on anew each time; what it throws must be of the storage
 * @param verify looks at what is left
 */
export async function failEach(
  choice: CallChoice,
  work: (faultOf: FaultHook) => void,
  verify: (label: string) => Promise<void>,
): Promise<void> {
  for (const failure of FAILURES) {
    for (const first of someCalls(choice)) {
      const label = `${failure.name}, from call ${first} of ${choice.calls}`;
      try {
        work(failure.hookFor(first));
      } catch (error) {
        if (!(error instanceof StorageError)) throw new Error(label, { cause: error });
      }
      await verify(label);
    }
  }
}

/** Numbers of `cases` calls at most, counted from 0, in order: the last one, and random ones. */
export function someCalls({ calls, start = 0, cases, random }: CallChoice): number[] {
  const count = calls - start;
  if (count <= cases) return Array.from({ length: count }, (_, index) => start + index);
  const numbers = new Set([calls - 1]);
  while (numbers.size < cases) numbers.add(random.between(start, calls - 1));
  return [...numbers].sort((one, other) => one - other);
}
