/** What a library writes to standard error: libfuse, and fusermount, say there why a mount failed. */

import fs from "node:fs";
import { dup, dup2, memfdCreate } from "../../syscalls/libc.ts";

const STDERR = 2;
const MFD_CLOEXEC = 1;

export interface CapturedText {
  /** Standard error is what it was. Returns what was written. */
  end(): string;
}

/** Let standard error go to memory. What others write meanwhile is there, too. */
export function captureStandardError(): CapturedText {
  const memory = memfdCreate("stderr", MFD_CLOEXEC);
  const kept = dup(STDERR);
  dup2(memory, STDERR);
  return {
    end: () => {
      dup2(kept, STDERR);
      fs.closeSync(kept);
      const text = fs.readFileSync(`/proc/self/fd/${memory}`, "utf8");
      fs.closeSync(memory);
      return text;
    },
  };
}
