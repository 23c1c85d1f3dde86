/** The options of `create -o`, in the names of qemu-img. */

import { OptionList, type OptionRow, optionRowsHelp } from "./option-list.ts";

/** Those that we know; hints to the host's file system, and names of secrets, are not among them. */
// biome-ignore format: a table reads in columns
const OPTIONS = {
  raw: [
    ["preallocation",    "str",  "Preallocation mode (allowed values: off, falloc, full)"],
    ["size",             "size", "Virtual disk size"],
  ],
  qcow2: [
    ["backing_file",     "str",  "File name of a base image"],
    ["backing_fmt",      "str",  "Image format of the base image"],
    ["cluster_size",     "size", "qcow2 cluster size"],
    ["compat",           "str",  "Compatibility level (v2 [0.10] or v3 [1.1])"],
    ["compression_type", "str",  "Compression method used for image cluster compression (zlib, zstd)"],
    ["data_file",        "str",  "File name of an external data file"],
    ["data_file_raw",    "bool (on/off)", "The external data file must stay valid as a raw image"],
    ["encrypt.cipher-alg",     "str", "Name of encryption cipher algorithm (aes-128, aes-192, aes-256, cast5-128)"],
    ["encrypt.cipher-mode",    "str", "Name of encryption cipher mode (ecb, cbc, xts, ctr)"],
    ["encrypt.format",         "str", "Encrypt the image, format choices: 'aes', 'luks'"],
    ["encrypt.hash-alg",       "str", "Name of encryption hash algorithm"],
    ["encrypt.iter-time",      "num", "Time to spend in PBKDF in milliseconds"],
    ["encrypt.ivgen-alg",      "str", "Name of IV generator algorithm (plain, plain64, essiv)"],
    ["encrypt.ivgen-hash-alg", "str", "Name of IV generator hash algorithm"],
    ["encryption",       "bool (on/off)", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"],
    ["extended_l2",      "bool (on/off)", "Extended L2 tables"],
    ["lazy_refcounts",   "bool (on/off)", "Postpone refcount updates"],
    ["preallocation",    "str",  "Preallocation mode (allowed values: off, metadata, falloc, full)"],
    ["refcount_bits",    "num",  "Width of a reference count entry in bits"],
    ["size",             "size", "Virtual disk size"],
  ],
  qed: [
    ["backing_file",     "str",  "File name of a base image"],
    ["backing_fmt",      "str",  "Image format of the base image"],
    ["cluster_size",     "size", "Cluster size (in bytes)"],
    ["size",             "size", "Virtual disk size"],
    ["table_size",       "size", "L1/L2 table size (in clusters)"],
  ],
} as const satisfies Record<string, readonly OptionRow[]>;

export type CreateFormat = keyof typeof OPTIONS;
export const CREATE_FORMATS: readonly CreateFormat[] = ["raw", "qcow2", "qed"];

type OptionName = (typeof OPTIONS)[CreateFormat][number][0];

/** The text of `-o help`. */
export function optionsHelp(format: CreateFormat): string {
  return `Supported ${format} options:\n${optionRowsHelp(OPTIONS[format])}`;
}

/** Whether create has an option, for some format. */
export function isCreateOption(name: string): boolean {
  return CREATE_FORMATS.some((format) => OPTIONS[format].some(([known]) => known === name));
}

/** What `create -o` asks for. */
export class CreateOptions extends OptionList<OptionName> {
  /** @throws {UsageError} an option that the format has not, or one without a value */
  constructor(format: CreateFormat, lists: readonly string[]) {
    super(OPTIONS[format], lists, (name) => `${format} has no option "${name}"; see -o help`);
  }
}
