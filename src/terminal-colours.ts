/** Whether what is printed has colours: on terminals only, and only if nobody has said no. */

/**
 * @param isTerminal of the stream that is printed to
 * @returns whether it takes colours, and whoever reads it wants them. Source: no-color.org
 */
export function wantsColours(isTerminal: boolean): boolean {
  const { NO_COLOR = "", TERM } = process.env;
  return isTerminal && NO_COLOR === "" && TERM !== "dumb";
}
