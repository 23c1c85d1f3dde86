/** `tsimgfs list`: the mounts that there are. */

import { listMounts } from "../../daemon/mounts.ts";
import { printable } from "../../errors.ts";
import { alignColumns } from "../align-columns.ts";
import type { DocumentedCommand } from "../documented-command.ts";
import { type Output, outputOption } from "../options.ts";
import { print } from "../print.ts";

export function defineList(command: DocumentedCommand): void {
  command
    .description("List the active mounts, from the kernel's mount table.")
    .addOption(outputOption())
    .document({
      examples: [["The mounts, for a program", "tsimgfs list --output json"]],
      seeAlso: ["mount", "umount", "top"],
    })
    .action(list);
}

function list({ output }: { output: Output }): void {
  const mounts = listMounts();
  if (output === "json") {
    print(`${JSON.stringify(mounts, null, 2)}\n`);
    return;
  }
  const rows = mounts.flatMap(({ mountpoint, source, state, pid, devices }) => {
    const daemon = state === "stale" ? "stale" : String(pid ?? "-");
    if (devices.length === 0) return [[mountpoint, daemon, "-", source]];
    return devices.map(({ image, format }) => [mountpoint, daemon, format, image]);
  });
  const table = [["MOUNTPOINT", "PID", "FORMAT", "IMAGE"], ...rows].map((row) =>
    row.map(printable),
  );
  if (rows.length > 0) print(alignColumns(table));
}
