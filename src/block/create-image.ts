/**
 * New images: what they refer to is found and looked at first, so that what cannot be done is refused
 * before any file is touched.
 */

import { UsageError } from "../errors.ts";
import { ClusterCache } from "../formats/compression/cluster-cache.ts";
import type { BackingReference, FormatName } from "../formats/driver.ts";
import { probeFormat } from "../formats/formats.ts";
import { type PlannedQcow2, planQcow2 } from "../formats/qcow2/create.ts";
import type { Qcow2CreateOptions } from "../formats/qcow2/create-check.ts";
import { type PlannedQed, planQed, type QedCreateOptions } from "../formats/qed/create.ts";
import { type RawPreallocation, SECTOR_SIZE } from "../formats/raw/create.ts";
import { fileIdentity } from "../storage/file-identity.ts";
import { attachChain } from "./attach-disk.ts";
import { closeChain, openChain } from "./open-chain.ts";
import {
  type BackingPolicy,
  missingBackingWarning,
  permittedPath,
  protocolOf,
  resolveReference,
} from "./referenced-file.ts";

/** The backing file of a new image: relative names start at the image's directory. */
export interface NewBacking {
  readonly name: string;
  readonly format: FormatName;
  /** False: it is named in the image and not looked at; it need not exist. */
  readonly open: boolean;
  /** What the backing file in turn may refer to. */
  readonly policy: BackingPolicy | undefined;
}

/** An image as the user wants it. */
export interface CreateRequest {
  readonly path: string;
  /** Bytes; undefined: as large as the backing file. */
  readonly size: number | undefined;
  readonly backing: NewBacking | undefined;
  readonly format:
    | { readonly name: "raw"; readonly preallocation: RawPreallocation }
    | {
        readonly name: "qcow2";
        readonly options: Omit<Qcow2CreateOptions, "virtualSize" | "backingFile">;
      }
    | {
        readonly name: "qed";
        readonly options: Omit<QedCreateOptions, "virtualSize" | "backingFile">;
      };
}

/** What the format makes of a request. */
type PlannedFormat =
  | { readonly name: "raw"; readonly preallocation: RawPreallocation }
  | { readonly name: "qcow2"; readonly plan: PlannedQcow2 }
  | { readonly name: "qed"; readonly plan: PlannedQed };

/** A request that can be carried out. */
export interface PlannedImage {
  readonly path: string;
  /** Bytes, as wanted: the disk is rounded up to whole sectors. */
  readonly size: number;
  readonly virtualSize: number;
  readonly dataFilePath: string | undefined;
  readonly format: PlannedFormat;
  /** What the user should know, one line each: `FILE: reason`. */
  readonly warnings: readonly string[];
}

/**
 * Check a request, and look at the backing file. No file is changed.
 *
 * @throws {TsimgfsError}
 */
export function planImage(request: CreateRequest): PlannedImage {
  const { path, backing, format } = request;
  if (format.name === "raw" && backing !== undefined) {
    throw new UsageError(path, "raw images have no backing files");
  }
  const below = lookAtBacking(path, backing);
  const size = request.size ?? below.virtualSize;
  if (size === undefined) throw new UsageError(path, "its size must be stated");
  const virtualSize = Math.ceil(size / SECTOR_SIZE) * SECTOR_SIZE;
  if (!Number.isSafeInteger(virtualSize)) {
    throw new UsageError(path, `size ${size} is above the limit of 2^53 - ${SECTOR_SIZE} bytes`);
  }
  const dataFile = format.name === "qcow2" ? format.options.dataFile : undefined;
  const dataFilePath =
    dataFile && permittedPath({ imagePath: path, role: "data file", name: dataFile.name }, "any");
  refuseSameFile(path, dataFilePath, below.paths);
  const backingFile = backing && { name: backing.name, format: backing.format };
  return {
    path,
    size,
    virtualSize,
    dataFilePath,
    format: planFormat(format, { virtualSize, backingFile }, path),
    warnings: [...below.warnings, ...warningsOf(request)],
  };
}

function planFormat(
  format: CreateRequest["format"],
  disk: { virtualSize: number; backingFile: BackingReference | undefined },
  path: string,
): PlannedFormat {
  switch (format.name) {
    case "raw":
      return format;
    case "qcow2":
      return { name: "qcow2", plan: planQcow2({ ...format.options, ...disk }, path) };
    case "qed":
      return { name: "qed", plan: planQed({ ...format.options, ...disk }, path) };
  }
}

function warningsOf({ path, format, backing }: CreateRequest): string[] {
  if (format.name !== "qed" || backing === undefined || backing.format === "raw") return [];
  const reason = `QED cannot state that its backing file is ${backing.format}: it is probed at each opening`;
  return [`${path}: warning: ${reason}`];
}

/** What is below a new image: nothing, or the backing file and all that it needs in turn. */
interface Below {
  readonly virtualSize: number | undefined;
  readonly paths: readonly string[];
  readonly warnings: readonly string[];
}

function lookAtBacking(path: string, backing: NewBacking | undefined): Below {
  if (backing === undefined) return { virtualSize: undefined, paths: [], warnings: [] };
  const { name, format, open, policy } = backing;
  if (!open) {
    const paths = protocolOf(name) === undefined ? [resolveReference(path, name)] : [];
    const missing = missingBackingWarning(path, name);
    return { virtualSize: undefined, paths, warnings: missing === undefined ? [] : [missing] };
  }
  const backingPath = permittedPath({ imagePath: path, role: "backing file", name }, "any");
  // Before it is opened: where the image does not exist yet, that would only say "no such file".
  refuseSameFile(path, undefined, [backingPath]);
  // Without locks, as QEMU: an overlay may be made of a disk that a running guest writes to.
  const chain = openChain(backingPath, {
    format,
    backingPolicy: policy,
    forceShare: true,
    onlyTables: true,
  });
  try {
    const { images, virtualSize } = attachChain(chain.layers, { clusterCache: new ClusterCache() });
    const paths = images.flatMap(({ storage, dataStorage }) => [storage.path, dataStorage.path]);
    const warnings = [...chain.warnings];
    const found = images[0] && format === "raw" ? probeFormat(images[0].storage) : undefined;
    if (found !== undefined) {
      warnings.push(`${backingPath}: warning: is used as raw, but looks like ${found}`);
    }
    return { virtualSize, paths, warnings };
  } finally {
    closeChain(chain);
  }
}

/** Refuse to write to a file that is read, or to one file as two. */
function refuseSameFile(
  path: string,
  dataFilePath: string | undefined,
  below: readonly string[],
): void {
  const read = new Set(below.map(fileIdentity));
  const image = fileIdentity(path);
  if (read.has(image)) throw new UsageError(path, "is in its own backing chain");
  if (dataFilePath === undefined) return;
  const data = fileIdentity(dataFilePath);
  if (data === image) throw new UsageError(path, "its data file is the image itself");
  if (read.has(data)) {
    throw new UsageError(path, `its data file ${dataFilePath} is in its backing chain`);
  }
}
