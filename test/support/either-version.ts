/** Files that contain what was there before a change that was cut short, or after it. */

import { open, stat } from "node:fs/promises";
import { expect } from "vitest";

/** What the disk contains after a kill: files with all that is certain, and with all that was under way too. */
export interface Versions {
  readonly expected: string;
  readonly attempted: string;
}

/** Expects each byte of a file to be that of one of the two versions. */
export async function expectEither(
  actual: string,
  { expected, attempted }: Versions,
): Promise<void> {
  const { size } = await stat(actual);
  const files = await Promise.all([actual, expected, attempted].map((path) => open(path, "r")));
  try {
    const step = 2 ** 20;
    for (let offset = 0; offset < size; offset += step) {
      const [bytes, wanted, other] = await Promise.all(
        files.map(async (file) => {
          const buffer = Buffer.alloc(step);
          await file.read(buffer, 0, step, offset);
          return buffer;
        }),
      );
      if (bytes === undefined || wanted === undefined || bytes.equals(wanted)) {
        continue;
      }
      const index = bytes.findIndex((byte, at) => byte !== wanted[at] && byte !== other?.[at]);
      expect(index < 0 ? undefined : offset + index, "lost what was acknowledged").toBeUndefined();
    }
  } finally {
    await Promise.all(files.map((file) => file.close()));
  }
}
