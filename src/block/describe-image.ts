/** What an image is, without opening anything that it refers to: for `info`. */

import fs from "node:fs";
import { FormatError, TsimgfsError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import type { BackingReference, FormatDescription, FormatName } from "../formats/driver.ts";
import {
  attachImage,
  determineFormat,
  isFormatName,
  probeFormat,
  readLayout,
} from "../formats/formats.ts";
import { lockForReading } from "../storage/image-lock.ts";
import { LocalFile } from "../storage/local-file.ts";
import { CHAIN_DEPTH_MAX } from "./open-chain.ts";
import { protocolOf, resolveReference } from "./referenced-file.ts";

export interface ImageDescription extends FormatDescription {
  readonly path: string;
  readonly format: FormatName;
  /** Bytes. */
  readonly virtualSize: number;
  /** Bytes that the image file occupies. */
  readonly allocatedSize: number;
  readonly backingFile: BackingReference | undefined;
  /** The backing file's name with the directory that it is relative to; it need not exist. */
  readonly fullBackingName: string | undefined;
}

/** `format`: stated by the user, or by the image above. */
export interface DescribeOptions {
  readonly format: FormatName | undefined;
  readonly forceShare: boolean;
}

/**
 * Describe one image.
 *
 * @throws {TsimgfsError}
 */
export function describeImage(path: string, options: DescribeOptions): ImageDescription {
  const file = LocalFile.open(path, "read-only");
  try {
    return describeFile(file, determineFormat(file, options.format), options.forceShare);
  } finally {
    file.close();
  }
}

/**
 * Describe an image and its backing files; the image comes first.
 *
 * @throws {TsimgfsError} also if a backing file cannot be described
 */
export function describeChain(path: string, options: DescribeOptions): ImageDescription[] {
  const descriptions: ImageDescription[] = [];
  const seen = new Set<string>();
  let next: string | undefined = path;
  let stated: string | undefined = options.format;
  while (next !== undefined) {
    const file = LocalFile.open(next, "read-only");
    try {
      const { dev, ino } = fs.fstatSync(file.fd);
      if (seen.has(`${dev}:${ino}`)) {
        throw new TsimgfsError("ELOOP", next, "is in its own backing chain");
      }
      seen.add(`${dev}:${ino}`);
      if (descriptions.length >= CHAIN_DEPTH_MAX) {
        throw new FormatError(
          path,
          `its backing chain is deeper than the limit of ${CHAIN_DEPTH_MAX} images`,
        );
      }
      const format =
        descriptions.length === 0
          ? determineFormat(file, options.format)
          : backingFormat(file, stated);
      const description = describeFile(file, format, options.forceShare);
      descriptions.push(description);
      next = localBackingPath(description);
      stated = description.backingFile?.format;
    } finally {
      file.close();
    }
  }
  return descriptions;
}

function backingFormat(file: LocalFile, stated: string | undefined): FormatName {
  if (stated === undefined) return probeFormat(file) ?? "raw";
  if (isFormatName(stated)) return stated;
  throw new FormatError(
    file.path,
    `its format "${stated}", stated by the image above, is not supported`,
  );
}

function localBackingPath({
  path,
  backingFile,
  fullBackingName,
}: ImageDescription): string | undefined {
  if (backingFile === undefined) return undefined;
  const protocol = protocolOf(backingFile.name);
  if (protocol === undefined) return fullBackingName;
  throw new TsimgfsError(
    "EACCES",
    path,
    `backing file "${backingFile.name}" is refused: "${protocol}:" is not a plain local path`,
  );
}

function describeFile(file: LocalFile, format: FormatName, forceShare: boolean): ImageDescription {
  if (!forceShare) lockForReading(file);
  const layout = readLayout(format, file, { tableCacheMax: 0, keepsL1: false });
  const files = { storage: file, dataStorage: undefined, key: undefined };
  const image = attachImage(layout, files, { clusterCache: new ClusterCache() });
  const { backingFile } = image;
  return {
    ...image.describe(),
    path: file.path,
    format,
    virtualSize: image.virtualSize,
    allocatedSize: file.allocatedSize(),
    backingFile,
    fullBackingName: fullName(file.path, backingFile),
  };
}

function fullName(path: string, backingFile: BackingReference | undefined): string | undefined {
  if (backingFile === undefined) return undefined;
  const { name } = backingFile;
  return protocolOf(name) === undefined ? resolveReference(path, name) : name;
}
