/** What a block device contains, as blkid(8) finds out by looking. */

import { attemptTool } from "./run-tool.ts";

export interface BlockContent {
  /** Of a file system, or something else that blkid knows. */
  readonly type: string | undefined;
  readonly label: string | undefined;
  readonly uuid: string | undefined;
  /** filesystem, raid, crypto, other. */
  readonly usage: string | undefined;
}

/**
 * Nothing is known where blkid finds nothing, or contradictions.
 *
 * @param window bytes of the device; default: all of it
 */
export function blockContent(
  path: string,
  window?: { readonly start: number; readonly size: number },
): BlockContent {
  const part = window === undefined ? [] : [`--offset=${window.start}`, `--size=${window.size}`];
  const { stdout } = attemptTool("blkid", ["--probe", ...part, "--output", "export", path]);
  const fields = new Map(
    stdout.split("\n").map((line): [string, string] => {
      const [name = ""] = line.split("=", 1);
      // Blanks and what a shell would take for its own are escaped.
      return [name, line.slice(name.length + 1).replace(/\\(.)/g, "$1")];
    }),
  );
  return {
    type: fields.get("TYPE") ?? fields.get("PTTYPE"),
    label: fields.get("LABEL"),
    uuid: fields.get("UUID"),
    usage: fields.get("USAGE"),
  };
}
