// qemu-img and qemu-io as makers of images and as the source of expected results.

import { encryptedArguments } from "./encrypted-image.ts";
import { type RunResult, run, runJson } from "./run.ts";

export type ImageFormat = "raw" | "qcow2" | "qed";

/** What QEMU's programs are told of an image: an encrypted one has the passphrase of all tests. */
export type OpenedFormat = ImageFormat | "encrypted qcow2";

/** How an image is named to QEMU's programs. */
export function imageArguments(path: string, format: OpenedFormat): string[] {
  return format === "encrypted qcow2" ? encryptedArguments(path) : ["-f", format, path];
}

export interface CreateOptions {
  /** Bytes; may be left out with a backing file. */
  readonly size?: number;
  /** Creation options of the format, as qemu-img's -o. */
  readonly options?: Readonly<Record<string, string | number>>;
  readonly backing?: { readonly file: string; readonly format: ImageFormat };
}

/** Creates an empty image. */
export async function createImage(
  path: string,
  format: ImageFormat,
  { size, options = {}, backing }: CreateOptions,
): Promise<void> {
  const list = Object.entries(options).map(([name, value]) => `${name}=${value}`);
  await run("qemu-img", [
    "create",
    "-q",
    ...["-f", format],
    ...(backing === undefined ? [] : ["-b", backing.file, "-F", backing.format]),
    ...(list.length === 0 ? [] : ["-o", list.join(",")]),
    path,
    ...(size === undefined ? [] : [String(size)]),
  ]);
}

/** Runs commands of qemu-io on an image, such as "write -P 1 0 64k". */
export async function qemuIo(
  path: string,
  format: OpenedFormat,
  commands: readonly string[],
): Promise<RunResult> {
  const result = await run("qemu-io", [
    ...commands.flatMap((command) => ["-c", command]),
    ...imageArguments(path, format),
  ]);
  // qemu-io reports a failed command only in words when others follow it.
  if (/failed|rror|not found/.test(result.stdout + result.stderr)) {
    throw new Error(`qemu-io: ${result.stdout}${result.stderr}\n${commands.join("\n")}`);
  }
  return result;
}

/** Writes the whole disk of an image to a raw file. */
export async function convertToRaw(
  image: string,
  format: ImageFormat,
  out: string,
  extra: readonly string[] = [],
): Promise<void> {
  await run("qemu-img", ["convert", "-f", format, "-O", "raw", ...extra, image, out]);
}

/** Writes a part of the disk of an image to a raw file. Offset and size are multiples of 512. */
export async function convertWindow(
  image: string,
  format: ImageFormat,
  window: { readonly offset: number; readonly size: number },
  out: string,
): Promise<void> {
  const source =
    `driver=raw,offset=${window.offset},size=${window.size},` +
    `file.driver=${format},file.file.driver=file,file.file.filename=${image}`;
  await run("qemu-img", ["convert", "--image-opts", source, "-O", "raw", out]);
}

export function imageInfo(args: readonly string[]): Promise<unknown> {
  return runJson("qemu-img", ["info", "--output", "json", ...args]);
}

export function imageMap(args: readonly string[]): Promise<unknown> {
  return runJson("qemu-img", ["map", "--output", "json", ...args]);
}
