{
  description = "airlock: declarative VM sandboxes";

  # The registry's own nixpkgs: whatever the user's machine pins.
  inputs.nixpkgs.url = "nixpkgs";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      each = make: nixpkgs.lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      # mmdebstrap and apt are for building images; running them needs QEMU alone.
      tools = pkgs: with pkgs; [ qemu mmdebstrap apt dpkg shadow util-linux ];
    in
    {
      packages = each (pkgs: {
        default = pkgs.python3Packages.buildPythonApplication {
          pname = "airlock";
          version = "0.1.0";
          pyproject = true;
          src = self;
          build-system = [ pkgs.python3Packages.setuptools ];
          dependencies = with pkgs.python3Packages; [
            click jinja2 kconfiglib platformdirs pyyaml rich sh tomlkit zstandard
          ];
          makeWrapperArgs = [ "--suffix" "PATH" ":" (pkgs.lib.makeBinPath (tools pkgs)) ];
          # They boot machines and fetch packages, which a Nix build may not.
          doCheck = false;
        };
      });
      devShells = each (pkgs: {
        default = pkgs.mkShell { packages = tools pkgs ++ [ pkgs.python3 pkgs.gnumake ]; };
      });
    };
}
