/** Encrypted images, made by qemu-img, and how QEMU's programs open them. */

import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, renameSync } from "node:fs";
import { join, resolve } from "node:path";
import { attempt, type RunOptions, until } from "./run.ts";
import { scratchRoot } from "./scratch.ts";

/** The passphrase of all images. */
export const PASSPHRASE = "0123456789";

/** What every one of QEMU's programs must be told to know a passphrase, as "key". */
function secretObject(passphrase: string): string[] {
  return ["--object", `secret,id=key,data=${passphrase}`];
}

/** As every one of QEMU's programs is told of the passphrase of all images. */
export const SECRET_OBJECT = secretObject(PASSPHRASE);

/** How an encrypted image is named to QEMU's programs. */
export function encryptedSource(path: string): string {
  return `driver=qcow2,file.filename=${path},encrypt.key-secret=key`;
}

/** As `encryptedSource`, with all that must come before. */
export function encryptedArguments(path: string, passphrase = PASSPHRASE): string[] {
  return [...secretObject(passphrase), "--image-opts", encryptedSource(path)];
}

/** Images that were made, by how they are made: to choose its costs for LUKS, QEMU computes for a second. */
const MADE = join(scratchRoot(), "encrypted-images");

/**
 * Creates an encrypted qcow2 image. One that was made in the same way before, in this test run, is copied: it
 * has the same key.
 *
 * @param options creation options; encrypt.key-secret is "key"
 * @param more other arguments
 */
export async function createEncryptedImage(
  path: string,
  options: readonly string[],
  size: string,
  more: readonly string[] = [],
  runOptions: RunOptions = {},
): Promise<void> {
  const target = resolve(runOptions.cwd ?? ".", path);
  const hash = createHash("sha256").update(JSON.stringify([options, size, more]));
  const made = join(MADE, hash.digest("hex"));
  // A data file is no part of the image.
  const isAlone = !options.some((option) => option.startsWith("data_file="));
  if (isAlone && existsSync(made)) {
    copyFileSync(made, target);
    return;
  }
  const args = ["create", "-q", "-f", "qcow2", ...SECRET_OBJECT, ...more, "-o"];
  // It also gives up where the clock is too coarse to measure processor time.
  await until("the image is made", async () => {
    const command = [...args, options.join(","), path, size];
    const { status } = await attempt("qemu-img", command, runOptions);
    return status === 0;
  });
  if (!isAlone) return;
  mkdirSync(MADE, { recursive: true });
  const copy = `${made}.${process.pid}`;
  copyFileSync(target, copy);
  renameSync(copy, made);
}
