/** Which files an image may make us open: its backing file and its external data file. */

import fs from "node:fs";
import { dirname } from "node:path";
import { printable, TsimgfsError } from "../errors.ts";

/**
 * any: every local path. same-directory: only files in the directory of the image that names them.
 * none: no file but those on the command line.
 */
export const BACKING_POLICIES = ["any", "same-directory", "none"] as const;
export type BackingPolicy = (typeof BACKING_POLICIES)[number];

/** A file that an image names: `role` is "backing file" or "data file". */
export interface FileReference {
  readonly imagePath: string;
  readonly role: "backing file" | "data file";
  readonly name: string;
}

/**
 * The path of a referenced file, as QEMU forms it: relative names start at the directory of the image.
 * The file need not exist.
 */
export function resolveReference(imagePath: string, name: string): string {
  if (name.startsWith("/")) return name;
  return imagePath.slice(0, imagePath.lastIndexOf("/") + 1) + name;
}

/**
 * What the user should know of a backing file that an image will name although nobody has opened it.
 *
 * @returns undefined: it is there, or cannot be looked for
 */
export function missingBackingWarning(imagePath: string, name: string): string | undefined {
  if (protocolOf(name) !== undefined) return undefined;
  const path = resolveReference(imagePath, name);
  try {
    if (fs.statSync(path, { throwIfNoEntry: false }) !== undefined) return undefined;
  } catch {
    return undefined;
  }
  return printable(`${imagePath}: warning: its backing file ${path} does not exist`);
}

/**
 * `nbd` of `nbd://host`, or undefined for a plain path: a colon before any slash makes a protocol.
 */
export function protocolOf(name: string): string | undefined {
  const match = /^([^/:]*):/.exec(name);
  return match?.[1];
}

/**
 * The path to open for a reference, if the policy allows it.
 *
 * @throws {TsimgfsError} EACCES: it is not a plain local path, or the policy forbids it
 */
export function permittedPath(reference: FileReference, policy: BackingPolicy): string {
  const { imagePath, role, name } = reference;
  const refuse = (reason: string): never => {
    throw new TsimgfsError("EACCES", imagePath, `${role} "${shorten(name)}" is refused: ${reason}`);
  };
  const protocol = protocolOf(name);
  if (protocol !== undefined) refuse(`"${shorten(protocol)}:" is not a plain local path`);
  if (policy === "none") refuse("the policy is none (--backing-policy)");
  const path = resolveReference(imagePath, name);
  if (policy === "same-directory" && directoryOf(path) !== directoryOf(imagePath)) {
    refuse("it is in another directory than the image (--backing-policy same-directory)");
  }
  return path;
}

/** The real directory of a file, symbolic links followed; of a file that is not there, by its name. */
function directoryOf(path: string): string {
  try {
    return dirname(fs.realpathSync(path));
  } catch {
    // The file is not there: its directory may be.
  }
  try {
    return fs.realpathSync(dirname(path));
  } catch {
    return dirname(path);
  }
}

/** Names come from images: 1023 bytes of them are too much for a line. */
function shorten(name: string): string {
  const limit = 120;
  return name.length <= limit ? name : `${name.slice(0, limit)}…`;
}

/**
 * The policy where none is stated: whoever owns an image, and root, may name any file in it; of
 * somebody else's image, only what lies beside it is opened.
 *
 * @param uid who opens it; default: this process
 */
export function defaultBackingPolicy(imagePath: string, uid = process.getuid?.()): BackingPolicy {
  if (uid === 0) return "any";
  try {
    return fs.statSync(imagePath).uid === uid ? "any" : "same-directory";
  } catch {
    return "any";
  }
}
