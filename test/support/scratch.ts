// Scratch directories: all below one directory of the test run, which the global teardown checks and removes.

import { chmod, chown, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Identity } from "./run.ts";

/** Names the directory of this test run in the environment of the workers. */
export const SCRATCH_ENVIRONMENT = "TSIMGFS_TEST_SCRATCH";

/** The directory of this test run. */
export function scratchRoot(): string {
  return process.env[SCRATCH_ENVIRONMENT] ?? tmpdir();
}

/** A new empty directory that everyone may enter. The caller removes it (or the global teardown does). */
export async function makeScratch(label: string, owner?: Identity): Promise<string> {
  const path = await mkdtemp(join(scratchRoot(), `${label}-`));
  await chmod(path, 0o755);
  if (owner !== undefined) {
    await chown(path, owner.uid, owner.gid);
  }
  return path;
}

/** Calls `body` with a scratch directory and removes it afterwards, also on failure. */
export async function withScratch<T>(
  label: string,
  body: (directory: string) => Promise<T>,
  owner?: Identity,
): Promise<T> {
  const path = await makeScratch(label, owner);
  try {
    return await body(path);
  } finally {
    await rm(path, { recursive: true, force: true });
  }
}
