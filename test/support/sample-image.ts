// A small image with data, zeros and holes, for tests whose subject is not the format.

import { join } from "node:path";
import { convertToRaw, createImage, type ImageFormat } from "./qemu.ts";
import { Random } from "./random.ts";
import { makePatterns, scribble } from "./scribble.ts";

export interface SampleImage {
  readonly path: string;
  readonly format: ImageFormat;
  /** A raw file with the bytes of the disk, by qemu-img. */
  readonly expected: string;
}

export interface SampleOptions {
  readonly format?: ImageFormat;
  /** Bytes. */
  readonly size?: number;
  readonly options?: Readonly<Record<string, string | number>>;
  readonly backing?: { readonly file: string; readonly format: ImageFormat };
}

/** Makes the image `name` in a directory, and beside it what its disk contains. */
export async function makeSample(
  directory: string,
  name: string,
  { format = "qcow2", size = 4_000_256, options, backing }: SampleOptions = {},
): Promise<SampleImage> {
  const path = join(directory, name);
  const random = new Random(name);
  await createImage(path, format, {
    size,
    ...(options === undefined ? {} : { options }),
    ...(backing === undefined ? {} : { backing }),
  });
  const patterns = await makePatterns(directory, random);
  const plan = { size, clusterSize: 65536, kinds: ["write", "write", "zero"], count: 20 } as const;
  await scribble(path, format, random, plan, patterns);
  const expected = `${path}.expected`;
  await convertToRaw(path, format, expected);
  return { path, format, expected };
}
