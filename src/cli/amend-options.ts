/** The options of `amend -o`, in the names of qemu-img. */

import type { Qcow2Amendment } from "../formats/qcow2/amend/amend.ts";
import { isCreateOption } from "./create-options.ts";
import { requestedSlotChange } from "./key-slot-request.ts";
import { OptionList, type OptionRow, optionRowsHelp } from "./option-list.ts";

// biome-ignore format: a table reads in columns
const OPTIONS = [
  ["backing_file",     "str",  "File name of a base image; empty: none any more"],
  ["backing_fmt",      "str",  "Image format of the base image"],
  ["compat",           "str",  "Compatibility level (v2 [0.10] or v3 [1.1])"],
  ["data_file",        "str",  "Another file name for the external data file that the image has"],
  ["data_file_raw",    "bool (on/off)", "The external data file must stay valid as a raw image"],
  ["encrypt.iter-time",  "num", "Time to spend in PBKDF in milliseconds"],
  ["encrypt.keyslot",    "num", "Select a single keyslot to modify explicitly"],
  ["encrypt.new-secret", "str", "File of the passphrase for a keyslot that becomes active"],
  ["encrypt.old-secret", "str", "File of the passphrase of keyslots that become inactive"],
  ["encrypt.state",      "str", "Select new state of affected keyslots (active/inactive)"],
  ["lazy_refcounts",   "bool (on/off)", "Postpone refcount updates"],
  ["refcount_bits",    "num",  "Width of a reference count entry in bits"],
  ["size",             "size", "Virtual disk size"],
] as const satisfies readonly OptionRow[];

export type AmendOptionName = (typeof OPTIONS)[number][0];

const COMPAT_VERSIONS = { "0.10": 2, v2: 2, "1.1": 3, v3: 3 } as const;
const COMPATS = ["0.10", "v2", "1.1", "v3"] as const;

/** The text of `-o help`. */
export function amendOptionsHelp(): string {
  return `Amend options for 'qcow2':\n${optionRowsHelp(OPTIONS)}`;
}

/** What `amend -o` asks for. */
export class AmendOptions extends OptionList<AmendOptionName> {
  /** @throws {UsageError} an option that cannot be amended, or one without a value */
  constructor(lists: readonly string[]) {
    super(OPTIONS, lists, (name) =>
      isCreateOption(name)
        ? `${name} is for new images only: it cannot be amended`
        : `there is no option "${name}"; see -o help`,
    );
  }

  /** @throws {UsageError} a value that the option cannot have, or a passphrase that cannot be read */
  amendment(): Qcow2Amendment {
    const compat = this.word("compat", COMPATS);
    return {
      version: compat && COMPAT_VERSIONS[compat],
      refcountBits: this.number("refcount_bits"),
      lazyRefcounts: this.bool("lazy_refcounts"),
      dataFileRaw: this.bool("data_file_raw"),
      dataFile: this.text("data_file"),
      backingFile: this.text("backing_file"),
      backingFormat: this.text("backing_fmt"),
      keySlots: requestedSlotChange(this),
    };
  }
}
