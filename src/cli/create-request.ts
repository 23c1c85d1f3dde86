/** What `-o` asks for, as a format that can be made; and how qemu-img says that it makes it. */

import type { CreateRequest, PlannedImage } from "../block/create-image.ts";
import { printable, UsageError } from "../errors.ts";
import { PREALLOCATIONS } from "../formats/qcow2/create-check.ts";
import { RAW_PREALLOCATIONS } from "../formats/raw/create.ts";
import type { CreateFormat, CreateOptions } from "./create-options.ts";
import { ENCRYPT_OPTIONS, requestedEncryption } from "./encryption-request.ts";

const DEFAULT = { clusterSize: 65536, refcountBits: 16, compat: "1.1", tableSize: 4 } as const;
const COMPAT_VERSIONS = { "0.10": 2, v2: 2, "1.1": 3, v3: 3 } as const;
const COMPATS = ["0.10", "v2", "1.1", "v3"] as const;

/**
 * The format that the options describe; what they leave open is as qemu-img has it.
 *
 * @param path of the image, for messages
 * @param secrets the passphrase of an encrypted image
 * @throws {UsageError}
 */
export function requestedFormat(
  path: string,
  name: CreateFormat,
  list: CreateOptions,
  secrets: readonly Uint8Array[] = [],
): CreateRequest["format"] {
  if (name === "raw") {
    return { name, preallocation: list.word("preallocation", RAW_PREALLOCATIONS) ?? "off" };
  }
  if (name === "qed") {
    const clusterSize = list.size("cluster_size") ?? DEFAULT.clusterSize;
    return {
      name,
      options: { clusterSize, tableSize: list.size("table_size") ?? DEFAULT.tableSize },
    };
  }
  const dataFileName = list.text("data_file");
  const raw = list.bool("data_file_raw") ?? false;
  if (dataFileName === "") throw new UsageError(path, "the name of the data file is empty");
  if (raw && dataFileName === undefined) {
    throw new UsageError(path, "data_file_raw needs a data file (-o data_file)");
  }
  return {
    name,
    options: {
      version: COMPAT_VERSIONS[list.word("compat", COMPATS) ?? DEFAULT.compat],
      clusterSize: list.size("cluster_size") ?? DEFAULT.clusterSize,
      refcountBits: list.number("refcount_bits") ?? DEFAULT.refcountBits,
      extendedL2: list.bool("extended_l2") ?? false,
      lazyRefcounts: list.bool("lazy_refcounts") ?? false,
      compressionType: list.word("compression_type", ["zlib", "zstd"]) ?? "zlib",
      preallocation: list.word("preallocation", PREALLOCATIONS) ?? "off",
      dataFile: dataFileName === undefined ? undefined : { name: dataFileName, raw },
      encryption: requestedEncryption(path, list, secrets),
    },
  };
}

/** `Formatting 'x.qcow2', fmt=qcow2 cluster_size=65536 …`: what qemu-img prints, in its order. */
export function formattingLine(
  plan: PlannedImage,
  request: CreateRequest,
  list: CreateOptions,
): string {
  const words = announcedOptions(plan, request, list).flatMap(([name, value]) => {
    if (value === undefined) return [];
    const text = typeof value === "boolean" ? (value ? "on" : "off") : String(value);
    return [`${name}=${text.replaceAll(",", ",,")}`];
  });
  const { path, format } = request;
  return printable(`Formatting '${path}', fmt=${format.name} ${words.join(" ")}`);
}

type AnnouncedOption = [name: string, value: string | number | boolean | undefined];

function announcedOptions(
  { size }: PlannedImage,
  { format, backing }: CreateRequest,
  list: CreateOptions,
): AnnouncedOption[] {
  switch (format.name) {
    case "raw":
      return [
        ["size", size],
        ["preallocation", list.text("preallocation")],
      ];
    case "qcow2":
      return [
        ["encryption", list.bool("encryption")],
        ...ENCRYPT_OPTIONS.map((name): AnnouncedOption => [name, list.text(name)]),
        ["cluster_size", format.options.clusterSize],
        ["extended_l2", format.options.extendedL2],
        ["preallocation", list.text("preallocation")],
        ["compression_type", format.options.compressionType],
        ["size", size],
        ["compat", list.text("compat")],
        ["backing_file", backing?.name],
        ["backing_fmt", backing?.format],
        ["data_file", list.text("data_file")],
        ["data_file_raw", list.bool("data_file_raw")],
        ["lazy_refcounts", format.options.lazyRefcounts],
        ["refcount_bits", format.options.refcountBits],
      ];
    case "qed":
      return [
        ["size", size],
        ["backing_file", backing?.name],
        ["backing_fmt", backing?.format],
        ["cluster_size", format.options.clusterSize],
        ["table_size", list.size("table_size")],
      ];
  }
}
