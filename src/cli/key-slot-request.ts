/** What `amend -o encrypt.…` asks for, with the rules of qemu-img; the secrets are files here. */

import { UsageError } from "../errors.ts";
import { KEY_SLOTS } from "../formats/encryption/luks-header.ts";
import type { SlotChange } from "../formats/encryption/slot-changes.ts";
import type { AmendOptions } from "./amend-options.ts";
import { requestedIterTimeMs } from "./encryption-request.ts";
import { checkNewSecret, readSecret } from "./secrets.ts";

const OTHERS = [
  "encrypt.keyslot",
  "encrypt.new-secret",
  "encrypt.old-secret",
  "encrypt.iter-time",
] as const;

/**
 * The change of key slots that the options describe.
 *
 * @returns undefined: none
 * @throws {UsageError} they contradict each other, or a file cannot be read
 */
export function requestedSlotChange(list: AmendOptions): SlotChange | undefined {
  const state = list.word("encrypt.state", ["active", "inactive"]);
  const refuse = (name: (typeof OTHERS)[number], reason: string): void => {
    if (list.text(name) !== undefined) throw new UsageError(`-o ${name}`, reason);
  };
  if (state === undefined) {
    for (const name of OTHERS) refuse(name, "needs encrypt.state=active or inactive");
    return undefined;
  }
  const slot = list.number("encrypt.keyslot");
  if (slot !== undefined && slot >= KEY_SLOTS) {
    throw new UsageError("-o encrypt.keyslot", `${slot} is outside 0..${KEY_SLOTS - 1}`);
  }
  if (state === "active") {
    refuse("encrypt.old-secret", "is for encrypt.state=inactive only");
    const file = list.text("encrypt.new-secret");
    if (file === undefined) {
      throw new UsageError("-o encrypt.state=active", "needs encrypt.new-secret=FILE");
    }
    const iterTimeMs = requestedIterTimeMs("-o", list.number("encrypt.iter-time"));
    const newSecret = readSecret(file);
    checkNewSecret(file, newSecret);
    return { state, slot, newSecret, iterTimeMs };
  }
  refuse("encrypt.new-secret", "is for encrypt.state=active only");
  refuse("encrypt.iter-time", "is for encrypt.state=active only");
  const file = list.text("encrypt.old-secret");
  if (file === undefined && slot === undefined) {
    const reason = "needs encrypt.keyslot=N or encrypt.old-secret=FILE";
    throw new UsageError("-o encrypt.state=inactive", reason);
  }
  return { state, slot, oldSecret: file === undefined ? undefined : readSecret(file) };
}
