/** What a person writes to capture tokens, in the words of the trainer a run is of. */

const EVERY_UPDATE: ReadonlyMap<string, string> = new Map([
  ["trl", 'UnipoCallback("runs/my-run", every=1)'],
  ["verl", "+unipo.every=1"],
]);

/** The setting under which every update is captured token by token. */
export function everyUpdate(library: string): string {
  return EVERY_UPDATE.get(library) ?? "CapturePolicy(every=1)";
}
